"""Finds, loads and runs the blocks of any Transformers decoder. Knows nothing of pruning.

The engine uses `decoder`. The modules by topic:

- a model's folder: `locate` finds it, with `gguf`, `gguf_file`, `gguf_settled`, `snapshots`, `hub`,
  `undownloaded`, `instead`;
- tensors: `checkpoint`, `conversion`, `outside`, `unread`;
- a decoder without its weights: `skeleton`, with `bare` and `recorder`; what blocks hand on: `forms`, `handing`,
  `written`, `passing`, `nested`; what a block holds and costs: `weightless`, `without_weights`, `linears`,
  `products`, `costs`;
- running a block: `block`, with `norms`, `fitted_linears`, `half_attention`, `repeated_keys`, `float32_products`,
  `routing`; the states that pass through blocks: `streams`; what follows the blocks: `predictor`;
- a whole model: `whole`, `widened`, `uncached`, `head`, `sampler`;
- the machine and the process: `gpus`, `full_speed`, `undisturbed`, `quiet`, `garbage`, `plain_kernels`.
"""
