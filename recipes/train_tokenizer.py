"""Train a tokenizer on your own text: sentencepiece (unigram) or WordPiece, with BERT's special tokens.

    python recipes/train_tokenizer.py --corpus_files corpus.txt --output_dir outputs/tokenizer
    python recipes/train_tokenizer.py --corpus_dataset Salesforce/wikitext \\
        --corpus_config wikitext-103-raw-v1 --vocab_size 16384 --output_dir outputs/tokenizer

The output folder is what AutoTokenizer loads, and what mlm.py and glue_tmc.py take as --tokenizer_name. Only
the training split is read: --corpus_validation_share should be that of the training that follows. The same
text gives the same tokenizer.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Literal

from common import parse_arguments
from corpus import CorpusArguments

from spikenlp.data import sentencepiece_tokenizer, wordpiece_tokenizer


@dataclass
class TokenizerArguments(CorpusArguments):
    output_dir: str = field(
        default="outputs/tokenizer", metadata={"help": "Where the tokenizer goes."}
    )
    model_type: Literal["sentencepiece", "wordpiece"] = field(
        default="sentencepiece",
        metadata={
            "help": "sentencepiece learns pieces (unigram); wordpiece takes the most frequent words, "
            "spells the others and lower-cases."
        },
    )
    vocab_size: int = field(
        default=8192, metadata={"help": "At most so many tokens, special ones included."}
    )
    lowercase: bool = field(
        default=True,
        metadata={"help": "Small letters; --no_lowercase keeps the case (sentencepiece)."},
    )
    model_max_length: int = field(
        default=512, metadata={"help": "Longest input that the tokenizer truncates to."}
    )


def main() -> None:
    (args,) = parse_arguments(sys.argv[1:], (TokenizerArguments,))
    corpus, source = args.load_corpus()
    texts = corpus["train"]["text"]
    if args.model_type == "sentencepiece":
        tokenizer = sentencepiece_tokenizer(texts, args.vocab_size, lowercase=args.lowercase)
    elif args.lowercase:
        tokenizer = wordpiece_tokenizer(texts, args.vocab_size)
    else:
        raise ValueError("--model_type wordpiece lower-cases: leave out --lowercase False")
    tokenizer.model_max_length = args.model_max_length
    tokenizer.save_pretrained(args.output_dir)
    sample = tokenizer(list(texts[:1000]), add_special_tokens=False, verbose=False)
    tokens = sum(map(len, sample["input_ids"]))
    unknown = sum(ids.count(tokenizer.unk_token_id) for ids in sample["input_ids"])
    words = sum(len(text.split()) for text in texts[:1000])
    print(f"text            {source}: {len(texts):,} documents")
    print(f"tokenizer       {args.model_type}, {len(tokenizer):,} tokens, in {args.output_dir}")
    print(f"on that text    {tokens / words:.2f} tokens a word, {unknown / tokens:.2%} unknown")


if __name__ == "__main__":
    main()
