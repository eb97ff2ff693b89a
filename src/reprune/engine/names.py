"""What a run calls the files that it leaves. Knows nothing of what stands in them."""

from __future__ import annotations

FOLDER = ".reprune"  # what an unfinished run goes on from
RECORD = "reprune.json"
RECIPE = "recipe.yaml"
INDEX = "model.safetensors.index.json"  # written last: a folder with it holds a whole model
