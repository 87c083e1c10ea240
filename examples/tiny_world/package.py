"""Step 4 of the embedded model: copy teacher and student into the package.

    python examples/tiny_world/package.py --teacher build/tiny-world/teacher/pipeline --student build/tiny-world/student

Copies the pipeline directory and the exported LoRA to `tdmr1_core/tiny` (for another `--world`, to a subfolder) and
removes local paths from their metadata.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

TINY = Path(__file__).parents[2] / "tdmr1_core" / "tiny"
TARGETS = {"shapes": TINY, "words": TINY / "words_model", "pairs": TINY / "pairs_model"}
LORA = "pytorch_lora_weights.safetensors"


def copy_lora(source: Path, target: Path) -> None:
    """Copy an exported LoRA without the path of its base model."""
    with safe_open(source, "pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "tdmr1.base_model"}
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(load_file(source), target, metadata)


def main() -> None:
    """Copy the files and remove local paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=TARGETS, default="shapes")
    parser.add_argument("--teacher", type=Path, help="the pipeline directory written by pretrain.py")
    parser.add_argument("--student", type=Path, help="the run folder of `tdmr1 distill`")
    options = parser.parse_args()
    target = TARGETS[options.world]
    if options.teacher:
        shutil.rmtree(target / "pipeline", ignore_errors=True)
        shutil.copytree(options.teacher, target / "pipeline")
    if options.student:
        copy_lora(options.student / "export" / LORA, target / "student" / LORA)
    for path in target.rglob("*.json"):
        config = json.loads(path.read_text())
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")
    for path in target.rglob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    main()
