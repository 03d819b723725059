"""`data=pile`: the known row of each step, out of three shards, local or by range of HTTP."""

import numpy as np
import pytest
from servers import serving

from mda import store
from mda.data import pile
from mda.data.errors import DataError
from mda.data.shards import Layout
from mda.data.stream import open_corpus, stream_order, unedited
from mda.schema import ConfigError, PileConfig, Unavailable

WIDTH, N, BATCH = 9, 100, 8
SHARD = 700  # bytes: no whole number of rows of 18, so that rows straddle
SIZES = [700, 700, 400]
TOKENS = np.random.default_rng(0).integers(1, 300, (N, WIDTH), dtype=np.uint16)
NAMES = [f"document-{i:05d}-of-00002.bin" for i in range(3)]


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    content = TOKENS.astype("<u2").tobytes()
    for i, name in enumerate(NAMES):
        (folder / name).write_bytes(content[i * SHARD : (i + 1) * SHARD])
    assert [(folder / name).stat().st_size for name in NAMES] == SIZES
    return folder


@pytest.fixture
def server(shards):
    with serving(shards) as found:
        yield found


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    waits = []
    monkeypatch.setattr("mda.data.shards.time.sleep", waits.append)
    return waits


def settings(source, **other):
    given = {"seq_len": WIDTH - 1, "vocab_size": 300, "held_out": 8, "n_sequences": 96}
    given |= {"shard_bytes": SHARD, "total_rows": N, "rows_per_request": BATCH}
    return PileConfig(source=str(source), **(given | other))


def build(folder, config):
    pile.inputs(config, lambda path: pytest.fail("no shard is hashed"))
    pile.build_from_config(folder / "corpus", config, folder / "downloads")
    return open_again(folder, config)


@pytest.fixture
def labels(tmp_path):
    """Values -> the path of a file of labels."""

    def save(values):
        np.save(tmp_path / "labels.npy", np.asarray(values))
        return str(tmp_path / "labels.npy")

    return save


def test_labels_of_the_held_out_rows_suffice_and_the_others_have_none(tmp_path, shards, labels):
    path = labels([1, 0, 0, 1, 1, 1, 0, 0])
    config = settings(shards, labels=path, label_names=["code", "prose"])
    assert pile.inputs(config, lambda p: f"hash of {p}")["labels"] == f"hash of {path}"
    pile.build_from_config(tmp_path / "corpus", config, tmp_path / "downloads")
    corpus = open_again(tmp_path, config)
    said = corpus.labels_of(corpus.held_out)
    assert said == ["prose", "code", "code", "prose", "prose", "prose", "code", "code"]
    assert corpus.labels_of(np.array([0, 87])) == ["unlabelled"] * 2


def test_labels_of_all_rows_are_those_of_the_rows(tmp_path, shards, labels):
    config = settings(shards, labels=labels(np.arange(96) % 5 * 10))
    pile.build_from_config(tmp_path / "corpus", config, tmp_path / "downloads")
    ids = np.array([0, 7, 95])
    assert open_again(tmp_path, config).labels_of(ids) == ["class_0", "class_20", "class_0"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.zeros(9, int), r"int64 \[9\]; .* each of the 96 rows or each of the 8 held-out rows$"),
        (np.zeros(8), r"float64 \[8\]; expected one integer for"),
        (np.zeros((8, 1), int), r"\[8, 1\]; expected one integer for"),
        (np.arange(8), "label 7 is the highest, but data.label_names has 2; expected 8 names"),
        (np.zeros(8, int), "label 0 is the highest, but data.label_names has 2; expected 1 names"),
    ],
)
def test_labels_that_do_not_fit_are_refused_before_a_row_is_fetched(
    tmp_path, server, labels, values, says
):
    config = settings(server.url, labels=labels(values), label_names=["code", "prose"])
    with pytest.raises(DataError, match=rf"^data\.labels=.*{says}"):
        pile.build_from_config(tmp_path / "corpus", config, tmp_path / "downloads")
    assert not server.requests


def test_a_name_that_labels_have_twice_is_refused(shards):
    with pytest.raises(ConfigError, match=r"^data\.label_names has 'code' twice"):
        settings(shards, label_names=["code", "prose", "code"])


def test_held_out_rows_may_call_a_class_unlabelled_themselves(tmp_path, shards, labels):
    names = ["unlabelled", "prose"]
    config = settings(shards, labels=labels([1, 0, 0, 1, 1, 1, 0, 0]), label_names=names)
    pile.build_from_config(tmp_path / "corpus", config, tmp_path / "downloads")
    corpus = open_again(tmp_path, config)
    assert corpus.label_names == ("unlabelled", "prose")
    assert set(corpus.labels_of(np.arange(88))) == {"unlabelled"}


def test_a_file_of_labels_that_is_not_there_is_refused(shards):
    with pytest.raises(DataError, match=r"^data\.labels=nowhere\.npy: no such file"):
        pile.inputs(settings(shards, labels="nowhere.npy"), str)


def open_again(folder, config):
    rows = pile.open_rows(folder / "corpus", config, folder / "downloads")
    return open_corpus(folder / "corpus", "fp", rows)


def steps(corpus, start, end):
    stream = unedited(stream_order(corpus, None), BATCH, start, end)
    return [corpus.rows(stream.at(step)[0]).tolist() for step in range(start, end)]


def test_pythia_s_own_layout_is_what_its_readme_says():
    rows = pile.shard_rows(PileConfig(source="."), None)
    layout = rows.layout
    assert len(layout.names) == 21
    assert layout.names[-1] == "document-00020-of-00020.bin"
    assert layout.size(0) == 30_000_000_000
    assert sum(map(layout.size, range(21))) == 600_078_336_000
    (piece,) = layout.pieces(1024 * 999, 1024 * 1000)
    assert piece == (0, 999 * 4_196_352, 1000 * 4_196_352)
    last = list(layout.pieces(1024 * 142_999, 1024 * 143_000))
    assert last[-1] == (20, layout.size(20) - 4_196_352, layout.size(20))


def test_pieces_of_rows_that_straddle_cover_every_byte_once():
    layout = Layout(tuple(NAMES), SHARD, N, WIDTH)
    content = TOKENS.tobytes()
    files = [content[i * SHARD : (i + 1) * SHARD] for i in range(3)]
    for first in range(N):
        for end in range(first + 1, N + 1):
            got = b"".join(files[s][a:b] for s, a, b in layout.pieces(first, end))
            assert got == content[18 * first : 18 * end]


def test_row_k_of_a_step_is_the_known_one(tmp_path, shards, server):
    for name, source in (("local", shards), ("remote", server.url)):
        corpus = build(tmp_path / name, settings(source))
        expected = TOKENS[: 11 * BATCH].reshape(11, BATCH, WIDTH)
        assert steps(corpus, 0, 11) == expected.tolist()
        order = np.random.default_rng(1).permutation(96)
        assert corpus.rows(order).tolist() == TOKENS[order].tolist()
        assert corpus.held_out.tolist() == list(range(88, 96))
        assert corpus.counts.tolist() == np.bincount(TOKENS[88:96].ravel(), minlength=300).tolist()
        with pytest.raises(IndexError, match="of 96"):
            corpus.rows(np.array([96]))


def test_only_the_bytes_of_the_window_are_fetched_and_each_once(tmp_path, server):
    corpus = build(tmp_path, settings(server.url))
    assert server.sent == 8 * WIDTH * 2, "the held-out rows"
    steps(corpus, 4, 7)  # rows 32 to 55: the first shard ends inside row 38
    assert server.sent == (8 + 24) * WIDTH * 2
    assert corpus.tokens.reader.fetched == 24 * WIDTH * 2
    steps(corpus, 4, 7)
    steps(open_again(tmp_path, settings(server.url)), 5, 7)
    assert server.sent == (8 + 24) * WIDTH * 2
    assert {path for path, *_ in server.requests} <= {f"/{name}" for name in NAMES}
    straddling = [
        (p, a, b) for p, a, b, _ in server.requests if a >= 32 * 18 or p != f"/{NAMES[0]}"
    ]
    assert (f"/{NAMES[0]}", 32 * 18, 700) in straddling
    assert (f"/{NAMES[1]}", 0, 40 * 18 - 700) in straddling


def test_what_is_missing_is_known_and_fetched_ahead(tmp_path, server):
    rows = build(tmp_path, settings(server.url)).tokens
    assert rows.missing(np.arange(20, 40)) == [2, 3, 4]
    rows.fetch(3)
    assert rows.missing(np.arange(20, 40)) == [2, 4]
    assert rows.missing(np.arange(88, 96)) == [], "the held-out ones are here"


REFUSALS = {
    "unknown": ([(404, {})], r"no such file \(404\)"),
    "private": ([(401, {})], r"refuses \(401\); set HF_TOKEN"),
    "gated": ([(403, {})], r"refuses \(403\); set HF_TOKEN"),
    "busy for long": ([(429, {"Retry-After": "600"})], "429, too many .* 600 s of patience; what"),
    "busy again and again": ([(429, {"Retry-After": "2"})] * 3, "429, too many requests"),
    "broken": ([(500, {})] * 3, "the server answers 500; what has been fetched is kept"),
    "cut": (["cut"] * 3, r"connection failed \(cut after \d+ bytes\); what has been fetched is"),
    "no ranges": (["whole"], "does not answer by range"),
    "another size": (["lies"], "the file has 701 bytes; expected 700 bytes"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_each_refusal_is_one_sentence_and_a_second_start_goes_on(tmp_path, server, case):
    answers, says = REFUSALS[case]
    config = settings(server.url)
    corpus = build(tmp_path, config)
    steps(corpus, 0, 1)
    before = server.sent
    server.answers = list(answers)
    with pytest.raises(ConfigError, match=says) as error:
        steps(corpus, 0, 4)
    assert error.value.exit_code == (75 if case.startswith(("busy", "broken", "cut")) else 2)
    assert str(error.value).startswith(f"{server.url}/{NAMES[0]}: ")
    assert "\n" not in str(error.value)
    assert server.answers == []
    between = server.sent
    assert steps(open_again(tmp_path, config), 0, 4) == TOKENS[:32].reshape(4, 8, 9).tolist()
    assert server.sent - between == 24 * WIDTH * 2, "the first step was here already"
    assert before == 16 * WIDTH * 2


def test_a_passing_trouble_is_waited_out(tmp_path, server, no_waiting, capsys):
    corpus = build(tmp_path, settings(server.url))
    server.answers = [(429, {"Retry-After": "7"}), "cut"]
    assert steps(corpus, 0, 1) == [TOKENS[:8].tolist()]
    assert no_waiting == [7, 1]
    assert "trying again in 7 s" in capsys.readouterr().err


def test_a_server_that_is_gone_is_one_sentence(tmp_path, shards):
    with serving(shards) as server:
        url = server.url
    with pytest.raises(
        Unavailable, match=r"the connection failed .*refused.*a second start goes on"
    ):
        build(tmp_path, settings(url))


def test_a_block_that_was_torn_is_fetched_again(tmp_path, server):
    config = settings(server.url)
    steps(build(tmp_path, config), 0, 2)
    (block,) = (tmp_path / "downloads").rglob("rows-000000008.npy")
    block.write_bytes(block.read_bytes()[:-7])
    before = server.sent
    assert steps(open_again(tmp_path, config), 0, 2) == TOKENS[:16].reshape(2, 8, 9).tolist()
    assert server.sent - before == 8 * WIDTH * 2


def test_a_block_with_a_flipped_bit_is_fetched_again_and_said(tmp_path, server, capsys):
    config = settings(server.url)
    steps(build(tmp_path, config), 0, 2)
    (block,) = (tmp_path / "downloads").rglob("rows-000000008.npy")
    content = bytearray(block.read_bytes())
    content[-3] ^= 1
    block.write_bytes(content)
    before = server.sent
    assert steps(open_again(tmp_path, config), 0, 2) == TOKENS[:16].reshape(2, 8, 9).tolist()
    assert server.sent - before == 8 * WIDTH * 2
    assert "rows-000000008.npy is damaged; it is fetched again" in capsys.readouterr().err


def test_more_rows_may_be_used_later_than_the_held_out_ones_were_part_of(tmp_path, server):
    build(tmp_path / "few", settings(server.url, n_sequences=44, held_out=2))
    downloads = tmp_path / "few" / "downloads"
    more = pile.shard_rows(settings(server.url), downloads)
    assert more.missing(np.arange(40, 48)) == []
    assert more[np.arange(40, 48)].tolist() == TOKENS[40:48].tolist()
    (block,) = downloads.rglob("rows-000000040.npy")
    store.write_npy(block, TOKENS[40:44])
    store.write_json(block.with_suffix(".json"), store.hash_arrays(TOKENS[40:44]))
    again = pile.shard_rows(settings(server.url), downloads)
    assert again[np.arange(40, 48)].tolist() == TOKENS[40:48].tolist(), "one kept by rows in use"


def test_a_block_whose_hash_was_not_written_yet_is_fetched_again(tmp_path, server):
    config = settings(server.url)
    steps(build(tmp_path, config), 0, 2)
    (block,) = (tmp_path / "downloads").rglob("rows-000000008.json")
    block.unlink()
    rows = open_again(tmp_path, config).tokens
    assert rows.missing(np.arange(16)) == [1]
    assert rows[np.arange(16)].tolist() == TOKENS[:16].tolist()
    assert rows.missing(np.arange(16)) == []


def test_local_shards_that_are_missing_or_of_another_size_are_named(tmp_path, shards):
    corpus = build(tmp_path, settings(shards))
    (shards / NAMES[1]).write_bytes(b"\0" * 699)
    with pytest.raises(DataError, match=r"00001-of-00002\.bin has 699 bytes; expected 700"):
        steps(corpus, 4, 7)
    (shards / NAMES[1]).unlink()
    with pytest.raises(DataError, match=r"^data\.source=.*there is no document-00001"):
        steps(corpus, 4, 7)
    with pytest.raises(DataError, match=r"^data\.source=.*no such folder"):
        pile.inputs(settings(tmp_path / "none"), None)


def test_other_rows_under_the_same_name_are_refused(tmp_path, shards):
    config = settings(shards)
    build(tmp_path, config)
    content = bytearray((shards / NAMES[2]).read_bytes())
    content[(95 * 18) - 1400] ^= 1
    (shards / NAMES[2]).write_bytes(content)
    with pytest.raises(DataError, match="other rows than those"):
        open_again(tmp_path, config)


def test_bytes_that_are_no_tokens_are_refused(tmp_path, shards):
    (shards / NAMES[0]).write_bytes(b"<html>".ljust(700, b"x"))
    corpus = build(tmp_path, settings(shards))
    with pytest.raises(DataError, match=r"row 0 .* token id \d+; expected below data\.vocab_size"):
        steps(corpus, 0, 1)


def test_the_token_goes_to_the_hub_alone_and_is_never_shown(tmp_path, shards, monkeypatch):
    with serving(shards) as hub, serving(shards) as other:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        config = settings(None)
        config.source = None
        hub.answers = [(302, {"Location": f"{other.url}/{NAMES[2]}"})]
        build(tmp_path, config)
        path, *_, headers = hub.requests[0]
        assert path == f"/datasets/{config.repo}/resolve/main/{NAMES[2]}"
        assert headers["Authorization"] == "Bearer hf_secret"
        assert "Authorization" not in other.requests[0][3]
        assert other.requests[0][3]["Range"] == headers["Range"]
        rows = pile.shard_rows(config, tmp_path)
        assert "hf_secret" not in repr(rows.reader)
        hub.answers = [(401, {})]
        with pytest.raises(DataError) as error:
            rows[np.array([0])]
        assert "hf_secret" not in str(error.value)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"n_sequences": 101}, r"data\.n_sequences=101 is invalid; expected at most .*=100"),
        ({"held_out": 96}, r"data\.held_out=96 is invalid; expected fewer than"),
        ({"files": "shard.bin"}, r"data\.files=shard\.bin is invalid; expected a name with"),
        ({"files": "{number}"}, r"data\.files=\{number\} is invalid; expected a name with"),
        ({"special_ids": [300]}, r"data\.special_ids=\[300\] is invalid; expected below"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(other, says):
    with pytest.raises(ConfigError, match=says):
        settings("x", **other)
