"""Finds, loads and runs the blocks of any Transformers decoder. Knows nothing of pruning.

`decoder` is what the engine uses. The modules, by what they are about:

- a model's folder: `locate` finds it, by `gguf`, `gguf_file`, `gguf_settled`, `snapshots`, `hub`, `instead`;
- tensors: `checkpoint`, `conversion`, `outside`, `unread`;
- a decoder without its weights: `skeleton`, by `bare` and `recorder`; what blocks hand on, by `forms`, `handing`,
  `written`, `passing`, `nested`; what is in a block and what it costs, by `weightless`, `without_weights`, `linears`,
  `products`, `costs`;
- a block that runs: `block`, by `norms`, `fitted_linears`, `half_attention`, `routing`; what goes through blocks, by
  `streams`; what follows them, by `predictor`;
- a whole model: `whole`, `widened`, `uncached`, `head`, `sampler`;
- the process: `full_speed`, `undisturbed`, `quiet`, `garbage`, `plain_kernels`.
"""
