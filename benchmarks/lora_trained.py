"""An alignment vector trained as a LoRA adapter by plain TRL and PEFT, and extracted from the merge.

What av-train does in full, with the paper's setting, done with a hundredth of the weights:

    python benchmarks/lora_trained.py --domain medical --rank 32 --out trials/lora/medical
"""

import tempfile
import time
from pathlib import Path

import click
from datasets import Dataset
from peft import LoraConfig
from trl import DPOTrainer

from mergekit_av import load_domain
from mergekit_av.data.records import load_records
from mergekit_av.models.default_base import base_or_default
from mergekit_av.models.load import load_model, load_tokenizer
from mergekit_av.training.arguments import training_arguments
from mergekit_av.training.pairs import preference_pairs
from mergekit_av.vectors.extraction import extract


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--domain", required=True)
@click.option("--base", help="By default the default base.")
@click.option("--rank", default=32, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.argument("dpo_options", nargs=-1, type=click.UNPROCESSED)
def main(domain, base, rank, out, dpo_options):
    """Train on a domain's records; what else is typed are fields of DPOConfig."""
    start = time.monotonic()
    base, domain = base_or_default(base), load_domain(domain)
    pairs = preference_pairs(r for r in load_records(domain) if r.split == "train")
    with tempfile.TemporaryDirectory() as scratch:
        trainer = DPOTrainer(
            load_model(base, "float32", "cpu"),
            args=training_arguments(dpo_options, setting="paper", output_dir=scratch),
            train_dataset=Dataset.from_list(pairs),
            processing_class=load_tokenizer(base),
            peft_config=LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"),
        )
        trainer.train()
        aligned = Path(scratch) / "aligned"
        trainer.model.merge_and_unload().save_pretrained(aligned)
        load_tokenizer(base).save_pretrained(aligned)
        history = {"method": f"DPO, LoRA rank {rank}", "seconds": time.monotonic() - start}
        options = {"name": domain.name, "levels": list(domain.levels), "training": history}
        extract(base, aligned, out, **options)


if __name__ == "__main__":
    main()
