"""The exact backend: small problems whose values, gradients and optima are computed, not estimated.

| module      | problem                                                                                          |
| ----------- | ------------------------------------------------------------------------------------------------ |
| tabular     | discounted Markov decision processes: values, occupancy, gradients, optimum                       |
| finite      | the same with a finite horizon; enumerated and sampled trajectories                               |
| average     | the same for the average reward: gain, bias, stationary distribution                              |
| soft        | entropy- and KL-regularised values and optimum                                                    |
| robust      | values under the worst of many kernels, and under convex risk measures                            |
| constrained | the optimum under limits on costs, by linear programming                                          |
| problems    | the named and random Markov decision processes                                                    |
| bandits     | Bernoulli and Gaussian bandits, with contexts or without                                          |
| games       | matrix games: equilibria, exploitability, learning fields                                         |
| extensive   | small games in extensive form: Kuhn poker                                                         |
| lqr         | linear systems with quadratic costs                                                               |
| sequences   | policies over all token sequences of a small vocabulary and length                                |
| dynamics    | the same problems as environments, in which every sampled method runs; `make("exact:chain")`      |

Everything but the linear programs is a pure function of small pytrees, so `jit`, `grad` and `vmap` apply: over seeds, and over problems.
Numbers have the type of the arrays; exact means float64, inside `jax.enable_x64(True)`.
"""
