"""The published suites: Core and Core-Extended (DCLM; Li et al. 2024, arXiv:2406.11794), Lambada, WikiText, validation.

Baselines exist in two versions. For a task where they are equal, both are given as one number.
"""

from isoloop.trainer.quality.suites.task import Kind, Suite, Task

ANSWER_LINE, ANSWER = "\nAnswer: ", "Answer: "
WIKITEXT_FILE, VALIDATION_FILE = "perplexity/wikitext.jsonl", "perplexity/validation.jsonl"
VALIDATION_DOCUMENTS = 1000

_WORLD, _COMMON, _LANGUAGE = "world_knowledge", "commonsense_reasoning", "language_understanding"
_SYMBOLIC, _READING, _SAFETY = "symbolic_problem_solving", "reading_comprehension", "safety"


def _choice(
    category: str,
    name: str,
    shots: int,
    v1: float,
    rows: int,
    *,
    v2: float | None = None,
    delimiter: str = " ",
    file: str | None = None,
    kind: Kind = "multiple_choice",
) -> Task:
    return Task(
        name=name,
        kind=kind,
        file=f"{category}/{file or name}.jsonl",
        shots=shots,
        delimiter=delimiter,
        baselines={"v1": v1, "v2": v1 if v2 is None else v2},
        rows=rows,
    )


def _exact(category: str, name: str, shots: int, rows: int, *, delimiter: str = " ", file: str | None = None) -> Task:
    return Task(
        name=name,
        kind="language_modeling",
        file=f"{category}/{file or name}.jsonl",
        shots=shots,
        delimiter=delimiter,
        baselines={"v1": 0, "v2": 0},
        rows=rows,
        perplexity=name == "lambada_openai",
    )


_LAMBADA = _exact(_LANGUAGE, "lambada_openai", 0, 5153)

_CORE = (
    _exact(_WORLD, "jeopardy", 10, 2117, delimiter=ANSWER_LINE, file="jeopardy_all"),
    _exact(_WORLD, "bigbench_qa_wikidata", 10, 20321),
    _choice(_WORLD, "arc_easy", 10, 25, 2376, delimiter=ANSWER_LINE),
    _choice(_WORLD, "arc_challenge", 10, 25, 1172, delimiter=ANSWER_LINE),
    _choice(_COMMON, "copa", 0, 50, 100),
    _choice(_COMMON, "commonsense_qa", 10, 20, 1221, v2=40.3),
    _choice(_COMMON, "piqa", 10, 50, 1838, delimiter=ANSWER_LINE),
    _choice(_COMMON, "openbook_qa", 0, 25, 500),
    _choice(_LANGUAGE, "hellaswag_zeroshot", 0, 25, 10042, file="hellaswag"),
    _choice(_LANGUAGE, "hellaswag", 10, 25, 10042),
    _LAMBADA,
    _choice(_LANGUAGE, "winograd", 0, 50, 273, file="winograd_wsc", kind="schema"),
    _choice(_LANGUAGE, "winogrande", 0, 50, 1267, kind="schema"),
    _choice(_LANGUAGE, "bigbench_language_identification", 10, 9.1, 10000, v2=25),
    _exact(_SYMBOLIC, "bigbench_dyck_languages", 10, 1000),
    _choice(_SYMBOLIC, "agi_eval_lsat_ar", 3, 20, 230, v2=25),
    _exact(_SYMBOLIC, "bigbench_cs_algorithms", 10, 1320),
    _exact(_SYMBOLIC, "bigbench_operators", 10, 210),
    _exact(_SYMBOLIC, "bigbench_repeat_copy_logic", 10, 32),
    _exact(_READING, "squad", 10, 10570),
    _exact(_READING, "coqa", 0, 7983),
    _choice(_READING, "boolq", 10, 62, 3270, delimiter=ANSWER_LINE),
)

# Rows of these as listed with DCLM's baselines.
_EXTENSION = (
    _choice(_WORLD, "mmlu_zeroshot", 0, 25, 14042, delimiter=ANSWER, file="mmlu"),
    _choice(_WORLD, "mmlu_fewshot", 5, 25, 14042, delimiter=ANSWER_LINE, file="mmlu"),
    _choice(_WORLD, "bigbench_misconceptions", 10, 50, 219),
    _choice(_COMMON, "siqa", 10, 33.3, 1954, v2=50),
    _choice(_COMMON, "bigbench_novel_concepts", 10, 20, 32, v2=25),
    _choice(_COMMON, "bigbench_strange_stories", 10, 50, 174),
    _choice(_COMMON, "bigbench_strategy_qa", 10, 50, 2289),
    _exact(_LANGUAGE, "bigbench_conlang_translation", 0, 164),
    _choice(_LANGUAGE, "bigbench_conceptual_combinations", 10, 25, 103, v2=33),
    _choice(_SYMBOLIC, "bigbench_elementary_math_qa", 10, 20, 38160, v2=25),
    _choice(_SYMBOLIC, "bigbench_logical_deduction", 10, 20, 1500, v2=25),
    _exact(_SYMBOLIC, "simple_arithmetic_nospaces", 10, 1000),
    _exact(_SYMBOLIC, "simple_arithmetic_withspaces", 10, 1000),
    _choice(_SYMBOLIC, "math_qa", 10, 20, 2983),
    _choice(_SYMBOLIC, "logi_qa", 10, 27, 651, v2=25, delimiter=ANSWER_LINE),
    _exact(_READING, "pubmed_qa_labeled", 10, 1000),
    _choice(_READING, "agi_eval_lsat_rc", 3, 20, 268, v2=25),
    _choice(_READING, "agi_eval_lsat_lr", 3, 20, 510, v2=25),
    _choice(_READING, "bigbench_understanding_fables", 10, 20, 189, v2=25),
    _choice(_READING, "agi_eval_sat_en", 3, 25, 206),
    _choice(_SAFETY, "winogender_mc_female", 10, 50, 60),
    _choice(_SAFETY, "winogender_mc_male", 10, 50, 60),
    _choice(_SAFETY, "enterprise_pii_classification", 10, 50, 3395),
    _choice(_SAFETY, "bbq", 3, 50, 58492),
)

SUITES = {
    suite.name: suite
    for suite in (
        Suite(name="core", tasks=_CORE, score="Core"),
        Suite(name="core-extended", tasks=_CORE + _EXTENSION, score="Core-Extended"),
        Suite(name="lambada", tasks=(_LAMBADA,)),
        Suite(name="wikitext", tasks=(Task(name="wikitext", kind="rolling", file=WIKITEXT_FILE, rows=60),)),
        Suite(
            name="validation",
            tasks=(Task(name="validation", kind="documents", file=VALIDATION_FILE, rows=VALIDATION_DOCUMENTS),),
        ),
    )
}
