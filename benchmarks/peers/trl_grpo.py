"""A GRPO iteration of TRL on a small decoder, timed; run with the interpreter of its own virtual environment.

    python trl_grpo.py SETTINGS

SETTINGS is one JSON object: model (a directory), prompts, completions, length, iterations, warm. Prints one line of JSON.
"""

import importlib.metadata
import json
import logging
import sys
import tempfile
import time

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers import logging as transformers_logging
from trl import GRPOConfig, GRPOTrainer


class Clock(TrainerCallback):
    """The wall time of each optimiser step, generation included."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, arguments, state, control, **rest):
        self.ends.append(time.perf_counter())


def main() -> None:
    settings = json.loads(sys.argv[1])
    logging.disable(logging.WARNING)
    transformers_logging.set_verbosity_error()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype="float32")
    rows = settings["prompts"] * settings["completions"]
    data = Dataset.from_list([{"prompt": f"{i % 90 + 10}+{i * 7 % 90 + 10}="} for i in range(4 * settings["prompts"])])
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=rows,
            num_generations=settings["completions"],
            max_completion_length=settings["length"],
            generation_kwargs={"min_new_tokens": settings["length"]},
            max_steps=settings["warm"] + settings["iterations"],
            beta=0.0,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
        )
        reward = lambda completions, **_: [float(text[:1].isdigit()) for text in completions]  # noqa: E731
        trainer = GRPOTrainer(model=model, reward_funcs=reward, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[clock])
        trainer.train()
    took = [b - a for a, b in zip(clock.ends[settings["warm"] - 1 :], clock.ends[settings["warm"] :])]
    versions = {name: importlib.metadata.version(name) for name in ("trl", "transformers", "torch")}
    print(json.dumps({"seconds": took, "versions": versions, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
