"""All that a run imports, frozen: searching it for garbage would take each forked process as long as pruning."""

import gc

import torch.distributed
import transformers.conversion_mapping
import transformers.core_model_loading
from transformers.models.gemma4 import modeling_gemma4
from transformers.models.llama import modeling_llama
from transformers.models.mixtral import modeling_mixtral

import reprune.doors.api
import reprune.doors.command.cli
import reprune.doors.command.launched
import reprune.doors.command.views
import reprune.doors.progress

__all__ = ["modeling_gemma4", "modeling_llama", "modeling_mixtral", "reprune", "torch", "transformers"]

gc.freeze()
