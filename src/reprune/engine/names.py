"""The names of the files that a run leaves. Knows nothing of their contents."""

from __future__ import annotations

FOLDER = ".reprune"  # the working folder, from which an unfinished run resumes
RECORD = "reprune.json"
RECIPE = "recipe.yaml"
INDEX = "model.safetensors.index.json"  # written last: a folder that has it holds a whole model
