"""A small model that answers a few prompts as a large one does: texts of the same kind, at a hundredth of the cost.

It has a vocabulary of its own, made of the large model's completions, and is trained on them by `algo=sft`.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import manual_seed
from transformers import PreTrainedTokenizerFast

from alignrun.models.tiny import random_llama, with_chat_marks
from studies.records import json_lines
from studies.sampling import Sampled
from studies.training import Job, alignrun, finish

VOCABULARY = 2048
ARCHITECTURE: dict[str, object] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
"""1.1 million weights."""
TRAINING = (
    "algo=sft",
    "adapter=none",
    "model=path",
    "data=jsonl",
    "train.epochs=6",
    "train.batch_size=64",
    "train.checkpoint_every=0",
    "optim.learning_rate=2e-3",
    "tracker=none",
)


def tokenizer_of(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte pairs of these texts; `<|im_end|>` ends a completion."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return with_chat_marks(tokenizer)


def train_student(folder: Path, taught: Sampled) -> Path:
    """The folder of the trained model, below `folder`. Raises RunError if a step fails."""
    student = folder / "student"
    if (student / "config.json").is_file():
        return student
    data, untrained = folder / "demonstrations.jsonl", folder / "untrained"
    rows = [
        {"prompt": prompt, "completion": text}
        for prompt, texts in zip(taught.prompts, taught.texts, strict=True)
        for text in texts
        if text.strip()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    data.write_text(json_lines(rows), encoding="utf-8")
    tokenizer = tokenizer_of(text for row in rows for text in row.values())
    manual_seed(0)
    random_llama(ARCHITECTURE, tokenizer).save_pretrained(untrained)
    tokenizer.save_pretrained(untrained)
    job = Job(
        folder / "teaching", (*TRAINING, f"model.path={untrained}", f"data.path={data}", f"data.eval_path={data}")
    )
    finish(job, 1)
    alignrun("export", str(job.folder), "--to", str(student), log=job.log)
    return student
