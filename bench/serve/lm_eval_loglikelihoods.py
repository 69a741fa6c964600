"""lm-eval in this process, through a server, and on the exported folder by transformers: the same log-likelihoods.

pip install lm-eval
anyformer export runs/mine exported --to hf
python -m bench.serve.lm_eval_loglikelihoods --run runs/mine --exported exported
"""

import json
import subprocess
import sys
from typing import Any

from anyformer import api
from anyformer.evaluation.harness import build_harness_model
from bench._common import make_parser

PAIRS = [
    ("To be, or not", " to be"),
    ("Now is the winter of our", " discontent"),
    ("All the world's", " a stage, and all the men"),
    ("", "O Romeo"),
]


def score(model: Any) -> list[tuple[float, bool]]:
    from lm_eval.api.instance import Instance

    return model.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(PAIRS)])


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--run", required=True)
    parser.add_argument("--exported", required=True)
    options = parser.parse_args()
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    command = [sys.executable, "-m", "anyformer", "serve", f"mine={options.run}", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split(" on ")[1].split()[0]
            settings = {"base_url": f"{url}/v1/completions", "tokenizer": options.exported, "batch_size": 2}
            served = score(LocalCompletionsAPI(model="mine", max_retries=10, **settings))
        finally:
            process.terminate()
    own = score(build_harness_model(api.load(options.run, "cpu")))
    expected = score(HFLM(pretrained=options.exported, device="cpu", dtype="float32"))
    rows = [
        {"pair": pair, "own": own, "served": a, "transformers": b, "greedy": [is_own, is_a, is_b]}
        for pair, (own, is_own), (a, is_a), (b, is_b) in zip(PAIRS, own, served, expected, strict=True)
    ]
    difference = max(abs(row[name] - row["transformers"]) for row in rows for name in ("own", "served"))
    if options.json:
        print(json.dumps({"rows": rows, "max_difference": difference}))
        return
    print(*rows, f"max difference: {difference:.1e}", sep="\n")


if __name__ == "__main__":
    main()
