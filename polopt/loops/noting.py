"""The off-policy loop of a policy that writes itself notes: an action and a note are drawn together, and what was noted is stored as data."""

from __future__ import annotations

import dataclasses
import math

from polopt.core.parts import hyper, part
from polopt.data.replay import Steps
from polopt.envs.notes import WithUnitNotes
from polopt.envs.task import ControlTask
from polopt.loops.off_policy import OffPolicy, State
from polopt.policies.noting import UnitNotingPolicy


@part
class NotingOffPolicy(OffPolicy):
    """An off-policy method in the larger process of environment and notes. With notes of size 0 it is the method as it is."""

    note_size: int = hyper(16, at_least=0)  # numbers in a note
    previous_action: bool = True  # actor and critics see the previous action too

    def within(self, task: ControlTask) -> ControlTask:
        """The task as the learner acts in it."""
        return dataclasses.replace(task, env=WithUnitNotes(task.env, self.note_size, self.previous_action)) if self.note_size else task

    def init(self, task: ControlTask, key) -> State:
        return super().init(self.within(task), key)

    def step(self, task: ControlTask, state: State):
        return super().step(self.within(task), state)

    def refresh(self, task: ControlTask, state: State) -> State:
        return super().refresh(self.within(task), state)

    def without_notes(self, task: ControlTask, steps: Steps) -> Steps:
        """Stored steps as the environment itself has them."""
        if not self.note_size:
            return steps
        space = task.env.action_space
        action = steps.action[..., : math.prod(space.shape)].reshape(*steps.reward.shape, *space.shape)
        return steps._replace(observation=steps.observation["observation"], next_observation=steps.next_observation["observation"], action=action)

    def policy(self, state: State):
        if not self.note_size:
            return super().policy(state)
        return UnitNotingPolicy(state.learner.actor, state.normaliser)
