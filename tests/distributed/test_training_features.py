"""What a run can be asked for besides training, through the real loop on one rank."""

import json
import shutil
from dataclasses import replace
from itertools import chain

import pytest
import torch
from safetensors.torch import load_file

from ace_dist.concepts.held_out_words import held_out_label_sets
from ace_dist.config import load_config, read_config
from ace_dist.data.loader import build_loader
from ace_dist.data.loader.base import Loader
from ace_dist.data.sampling import TestPlan
from ace_dist.data.task import load_task
from ace_dist.evaluate.protocols import accuracy_and_f1, encode_test, score
from ace_dist.evaluate.runs import evaluate_run, keep_validation, results_table, trained_model
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.models.timesformer import TimeSformer
from ace_dist.objectives.concept import ConceptObjective
from ace_dist.train.callbacks import StepEnd
from ace_dist.train.checkpoint import CheckpointFolder
from ace_dist.train.engine import Engine
from ace_dist.train.metrics import Meters
from ace_dist.train.monitor import Monitor
from ace_dist.train.validation import Validation
from ace_dist.utils.errors import RunError

STEPS = 6

pytestmark = pytest.mark.slow


@pytest.fixture
def run(six_steps, tmp_path):
    """`run("name", "key=value", ...)`: train `STEPS` steps into a folder of that name; returns the outcome."""

    def start(name, *settings):
        return six_steps(tmp_path / name, *settings)

    start.folder = tmp_path
    return start


def lines(run, name):
    """`metrics.jsonl`."""
    return [json.loads(line) for line in (run.folder / name / "metrics.jsonl").read_text().splitlines()]


def weights(run, name):
    """Weights and momentum of the newest checkpoint."""
    return CheckpointFolder(run.folder / name / "checkpoints", keep=2).newest().parts


def same_bits(a, b):
    """Whether two checkpoints hold the same, and more than nothing."""
    assert a.keys() == b.keys() and a["weights"]
    names = {(part, name) for part in a for name in a[part]}
    return names == {(part, name) for part in b for name in b[part]} and all(
        torch.equal(a[part][name], b[part][name]) for part, name in names
    )


def test_a_line_of_the_log_covers_its_steps_across_a_stop(run):
    """Stopped after step 3 of a line that ends at 5: its mean losses are those of a run left alone, bit for bit."""
    run("alone", "training.log_every_steps=5")
    run("stopped", "training.log_every_steps=5", "training.stop_after_steps=3")
    run("stopped", "training.log_every_steps=5")
    alone, stopped = lines(run, "alone"), lines(run, "stopped")
    assert [line["step"] for line in alone] == [5, 6]
    kept = ("step", "epoch", "loss", "loss_fixed", "loss_random", "unchanged_draws", "lr_video", "lr_text")
    assert [{key: line[key] for key in kept} for line in stopped] == [
        {key: line[key] for key in kept} for line in alone
    ]
    assert alone[0]["loss"] != alone[1]["loss"]


def test_an_open_line_goes_on_with_other_ranks_and_micro_batches(ranks, tmp_path):
    """Three steps of two ranks, then two steps of one rank in two micro-batches: the mean over the five steps."""
    settings = load_config(["training.accumulation=2", "training.log_every_steps=5"]).training
    before = torch.rand(2, 3, dtype=torch.float64)  # rank, step
    after = torch.rand(2, 2, dtype=torch.float64)  # step, micro-batch
    carried = {"steps": 3, "micro_steps": 3, "taken_s": 2.0, "wait_s": 0.5}
    carried["sums"] = [{"loss": float(part.sum())} for part in before]
    meters = Meters(ranks, settings.batch_size, {})
    with Monitor(tmp_path, replace(ranks), 3, 10, settings, meters, carried) as monitor:
        for step in range(2):
            for value in after[step]:
                monitor.on_micro_batch({}, value)
            monitor.on_step_end(StepEnd(4 + step, 0.0, {}, 0.25))
    (line,) = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert line["loss"] == pytest.approx((float(before.mean(0).sum()) + float(after.mean(1).sum())) / 5)
    assert line["clips_per_s"] == pytest.approx(5 * settings.batch_size / (2.0 + line["elapsed_s"]))
    assert line["data_wait_share"] == pytest.approx((0.5 + 0.25) / (2.0 + line["elapsed_s"]))


@pytest.mark.parametrize("text", [[], ["model.text.trained_layers=1"]], ids=["projection", "layers"])
def test_terms_on_the_text_side_go_on_where_they_stopped(run, text):
    """They compare with where training began: a run that was stopped still knows it, and ends in the same bits."""
    terms = ["method.l2_sp=0.1", "method.distil=1", "method.margin=0.1", "method.shadow_band=[0,0.9]", *text]
    run("alone", *terms)
    run("stopped", *terms, "training.stop_after_steps=3")
    run("stopped", *terms)
    assert same_bits(weights(run, "alone"), weights(run, "stopped"))
    first, *_, last = lines(run, "alone")
    assert first["loss_l2_sp"] == 0 < last["loss_l2_sp"] and first["loss_distil"] < 1e-5 < last["loss_distil"]
    parts = [f"loss{part}" for part in ("", "_fixed", "_random", "_l2_sp", "_distil", "_margin")]
    assert [last[part] for part in parts] == [lines(run, "stopped")[-1][part] for part in parts] and last[
        "loss_margin"
    ] > 0


VALIDATION = ["evaluation.every_steps=2", "evaluation.validation_share=0.2", "evaluation.batch_size=16"]


@pytest.fixture
def scored(monkeypatch):
    """`scored([50, 60, ...])`: what validations find, in turn, instead of what the small model would."""

    def arrange(accuracies):
        waiting = iter(accuracies)
        monkeypatch.setattr(Validation, "scores", lambda self, step: {"accuracy": next(waiting), "f1": 1.0})

    return arrange


def accuracy_by_hand(folder, task):
    """Eq. 3 written out over the held-out clips, one clip and one phrase at a time, in percent."""
    config = read_config(folder)
    model = trained_model(folder, config, torch.device("cpu")).eval()

    def unit(rows):
        return rows / rows.norm(dim=1, keepdim=True)

    prototypes = []
    for action in task.classes.base:
        phrases = [str(action.with_verb(verb)) for verb in task.trees.children(action.verb)]
        prototypes.append(
            torch.cat([unit(model.build_text_features([text]).encode(torch.tensor([0]))) for text in phrases]).mean(0)
        )
    hits = []
    loader = build_loader(config, "cpu")
    for record, label in zip(*task.validation_clips(), strict=True):
        views = TestPlan([record], [label], config.dataset.clip, config.loader, 16).batches()
        (batch,) = loader.stream(views)
        cosines = unit(model.encode_video(batch.video)) @ torch.stack(prototypes).T
        guess = int((cosines / config.method.temperature).softmax(1).sum(0).argmax())
        hits.append(str(task.classes.base[guess]) == f"{record.verb} {record.object}")
    loader.close()
    return 100 * sum(hits) / len(hits)


def test_validation_looks_at_clips_that_do_not_train(run, monkeypatch):
    """Held-out groups of the training split and nothing of the test split; scored as test clips are; training clips
    are all others, and their losses are not touched by looking."""
    trained, tested, stream = set(), set(), Loader.stream

    def watched(self, batches):
        for batch in stream(self, batches):
            (trained if torch.is_grad_enabled() else tested).update(batch.ids)
            yield batch

    monkeypatch.setattr(Loader, "stream", watched)
    run("often", *VALIDATION, "training.max_steps=8")
    task = load_task(read_config(run.folder / "often"))
    groups = {record.key: record.group for record in task.shards.split("train")}
    assert tested and tested == {key for key, group in groups.items() if group in task.validation}
    assert trained and trained.isdisjoint(tested) and trained <= groups.keys()
    found = {line["step"]: line for line in lines(run, "often") if "validation_accuracy" in line}
    assert sorted(found) == [2, 4, 6, 8]

    assert found[8]["validation_accuracy"] == pytest.approx(accuracy_by_hand(run.folder / "often", task))

    assert all(0 < line["validating_s"] < line["elapsed_s"] for line in found.values())
    run("seldom", "evaluation.every_steps=8", *VALIDATION[1:], "training.max_steps=8")
    kept = [[line["loss"] for line in lines(run, name) if "loss" in line] for name in ("often", "seldom")]
    assert kept[0] == kept[1] and same_bits(weights(run, "often"), weights(run, "seldom"))


def test_a_run_that_validates_continues_bit_for_bit(run):
    """Stopped between validations and after one: the same lines, the same best, the same weights as left alone."""
    settings = [*VALIDATION, "training.keep_best=true", "training.ema_decay=0.5", "training.keep_checkpoints=1"]
    run("alone", *settings)
    for stop in (1, 3):
        run("stopped", *settings, f"training.stop_after_steps={stop}")
    run("stopped", *settings)
    compared = ("step", "loss", "loss_fixed", "loss_random", "validation_accuracy", "validation_f1")
    kept = [[{key: line.get(key) for key in compared} for line in lines(run, name)] for name in ("alone", "stopped")]
    assert kept[0] == kept[1] and len(kept[0]) == STEPS + STEPS // 2
    assert same_bits(weights(run, "alone"), weights(run, "stopped"))
    files = [(run.folder / name / "model" / "trained.safetensors").read_bytes() for name in ("alone", "stopped")]
    assert files[0] == files[1]


def test_the_best_weights_are_exported_and_the_run_ends_when_nothing_improves(run, scored, capsys, ranks):
    """Best at step 4, then worse, then equal: with a patience of 2 the run is finished at step 8 with step 4's weights,
    stopped or not; the best checkpoint outlives newer ones. Its log has the last steps, and an average that had not
    begun is not named. The validation that its results hold is that of the weights, and a test leaves it there."""
    settings = [*VALIDATION, "training.max_steps=20", "training.keep_best=true", "training.early_stopping_patience=2",
                "training.keep_checkpoints=1", "training.log_every_steps=100", "training.swa_start=0.9"]  # fmt: skip
    scored([50.0, 60.0, 40.0, 60.0])
    outcome = run("patient", *settings)
    assert (outcome.step, outcome.stopped) == (8, None)
    said = capsys.readouterr().out
    assert "weights that are tested and exported: step 4, best of validation (accuracy 60.0 %" in said
    assert "running average" not in said
    assert [line["step"] for line in lines(run, "patient") if "loss" in line] == [8]
    validation = keep_validation(run.folder / "patient", ranks)["validation"]
    assert validation["accuracy"] == 60.0
    assert evaluate_run(run.folder / "patient", ranks)["validation"] == validation
    folders = sorted(path.name for path in (run.folder / "patient" / "checkpoints").iterdir())
    assert folders == ["step-00000004", "step-00000008"]
    best = load_file(run.folder / "patient" / "checkpoints" / folders[0] / "weights.safetensors")
    exported = load_file(run.folder / "patient" / "model" / "trained.safetensors")
    assert best.keys() == exported.keys() and all(torch.equal(best[name], exported[name]) for name in best)
    assert any(not torch.equal(best[name], weights(run, "patient")["weights"][name]) for name in best)
    scored([])
    again = run("patient", *settings)
    assert (again.step, again.stopped) == (8, None), "a finished run must not go on"

    scored([50.0, 60.0, 40.0])
    run("stopped", *settings, "training.stop_after_steps=7")
    scored([60.0])
    outcome = run("stopped", *settings)
    assert (outcome.step, outcome.stopped) == (8, None), "patience and best must outlive a stop"


def test_an_average_of_the_last_steps_is_exported_and_survives_a_stop(run):
    """SWA from half of six steps on: the mean of the weights after steps 4, 5 and 6, stopped or not."""
    settings = ["training.swa_start=0.5", "training.save_every_steps=1", "training.keep_checkpoints=6"]
    run("alone", *settings)
    folder = run.folder / "alone"
    last = [load_file(folder / "checkpoints" / f"step-0000000{step}" / "weights.safetensors") for step in (4, 5, 6)]
    exported = load_file(folder / "model" / "trained.safetensors")
    for name, tensor in exported.items():
        wanted = sum(weights[name].double() for weights in last) / 3
        torch.testing.assert_close(tensor.double(), wanted, rtol=1e-5, atol=1e-6)  # two roundings of a lerp in float32
    assert any(not torch.equal(exported[name], last[-1][name]) for name in exported)
    run("stopped", *settings, "training.stop_after_steps=5")
    run("stopped", *settings)
    again = load_file(run.folder / "stopped" / "model" / "trained.safetensors")
    assert all(torch.equal(again[name], exported[name]) for name in exported)


WORDS = [*VALIDATION, "evaluation.validation_words=0.4"]


def test_base_srt_asks_for_words_that_no_step_draws(run, ranks, monkeypatch):
    """Every phrase that a step encodes, against every phrase that a validation does; the mean and spread by hand."""
    drawn, asked = set(), []
    place, build = ConceptObjective.place, DualEncoder.build_text_features

    def placed(self, draw):
        drawn.update(*draw.fixed, *draw.random, *draw.shadow)
        return place(self, draw)

    def built(self, phrases):
        asked.append(set(phrases))
        return build(self, phrases)

    monkeypatch.setattr(ConceptObjective, "place", placed)
    monkeypatch.setattr(DualEncoder, "build_text_features", built)
    run("words", *WORDS)
    config = read_config(run.folder / "words")
    task = load_task(config)
    labels = {str(action.with_verb(word)) for action in task.classes.base for word in task.held_out[action.verb]}
    assert any(labels <= phrases for phrases in asked), "validation asks for all of them"
    words = {phrase.removesuffix(f" {action.object}") for action in task.classes.base for phrase in drawn}
    assert words.isdisjoint(chain(*task.held_out.values())) and drawn.isdisjoint(labels)

    (last,) = [line for line in lines(run, "words") if line.get("step") == STEPS and "validation_accuracy" in line]
    model = trained_model(run.folder / "words", config, torch.device("cpu")).eval()
    clips = encode_test(model, build_loader(config, "cpu"), task.validation_clips(), config, ranks)
    found = [
        accuracy_and_f1(score(model, clips, [labels], config)[0])["accuracy"]
        for labels in held_out_label_sets(task.classes.base, task.held_out, config.seed)
    ]
    assert last["validation_srt_accuracy_mean"] == pytest.approx(sum(found) / 10)
    assert last["validation_srt_accuracy_std"] == pytest.approx(torch.tensor(found).std(correction=0).item(), abs=1e-3)


def test_the_best_weights_by_base_srt(run, monkeypatch, capsys):
    """The highest mean, and of equal means the smaller spread, whatever base accuracy says."""
    found = iter([(90.0, 50.0, 5.0), (70.0, 60.0, 9.0), (60.0, 60.0, 8.0), (95.0, 60.0, 8.0)])

    def scores(self, step):
        names = ("accuracy", "srt_accuracy_mean", "srt_accuracy_std")
        return dict(zip(names, next(found), strict=True)) | {"f1": 1.0}

    monkeypatch.setattr(Validation, "scores", scores)
    run("best", *WORDS, "training.keep_best=base_srt", "training.max_steps=8")
    said = capsys.readouterr().out
    assert "exported: step 6, best of validation (accuracy 60.0 %, macro F1 1.0 %, base SRT 60.0 ± 8.0 %)" in said
    best = load_file(run.folder / "best" / "checkpoints" / "step-00000006" / "weights.safetensors")
    exported = load_file(run.folder / "best" / "model" / "trained.safetensors")
    assert all(torch.equal(best[name], exported[name]) for name in best)


def test_a_best_checkpoint_that_is_gone_is_named(run, scored, capsys):
    """Deleted while the run was stopped: said, and the next validation is the best."""
    settings = [*VALIDATION, "training.keep_best=true", "training.keep_checkpoints=1"]
    scored([60.0, 50.0])
    run("robbed", *settings, "training.stop_after_steps=4")
    shutil.rmtree(run.folder / "robbed" / "checkpoints" / "step-00000002")
    scored([40.0])
    run("robbed", *settings)
    said = capsys.readouterr().out
    assert "the checkpoint of step 2, the best so far, is gone" in said
    assert "weights that are tested and exported: step 6, best of validation (accuracy 40.0 %" in said


@pytest.mark.parametrize("end", ["training.max_steps=6", "training.early_stopping_patience=2"])
@pytest.mark.parametrize("loss", ["gone", "damaged"])
def test_a_finished_run_keeps_its_best_weights_without_their_checkpoint(run, scored, capsys, end, loss):
    """The exported file is their only copy then: the same command keeps it; it neither trains on nor takes the last."""
    settings = [*VALIDATION, "training.max_steps=20", "training.keep_best=true", end]
    scored([60.0, 50.0, 40.0])
    run("best", *settings)
    folder = run.folder / "best"
    checkpoint, trained = folder / "checkpoints" / "step-00000002", folder / "model" / "trained.safetensors"
    before = trained.read_bytes()
    if loss == "gone":
        shutil.rmtree(checkpoint)
    else:
        (checkpoint / "weights.safetensors").write_bytes(b"")
    scored([])
    assert run("best", *settings).stopped is None
    assert trained.read_bytes() == before
    said = capsys.readouterr().out
    assert (
        f"{trained}, which holds its weights, stays as it is" in said
        and "exported: step 2, best of validation (accuracy 60.0 %" in said
    )

    damaged = before[:-1] + bytes([before[-1] ^ 1])
    trained.write_bytes(damaged)
    with pytest.raises(RunError, match=r"trained\.safetensors is damaged: .*step-00000002.*, or delete both"):
        run("best", *settings)
    assert trained.read_bytes() == damaged


def test_a_run_without_test_clips_says_so_at_both_ends(run, ranks, capsys):
    """At the start, where it can still be helped, and in the table, which would show dashes alone."""
    run("untested", "dataset.test_groups=[]", "training.max_steps=1")
    assert "warning: the test split has no clip (dataset.test_groups" in capsys.readouterr().out
    results = evaluate_run(run.folder / "untested", ranks)
    assert results["base"] is results["novel"] is results["hm"] is results["srt"] is None
    assert "nothing was scored: the test split has no clip" in results_table(results)
    run("tested", "training.max_steps=1")
    assert "the test split has no clip" not in capsys.readouterr().out
    results = evaluate_run(run.folder / "tested", ranks)
    assert results["weights"] == "step 1" and "in percent" in results_table(results)


def test_compiled_blocks_train_alike(run):
    """Losses of a run whose blocks torch.compile has rewritten, stochastic depth included, and names of its weights."""
    words = ["training.max_steps=2", "model.video.drop_path=0.2", "model.init=random", "model.video.depth=3"]
    run("plain", *words)
    run("compiled", *words, "model.video.compile=default")
    found = [[line["loss"] for line in lines(run, name)] for name in ("plain", "compiled")]
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert weights(run, "plain").keys() == weights(run, "compiled").keys()


@pytest.mark.parametrize("stage", [0, 1])
def test_a_bf16_step_equals_deepspeeds(run, stage, monkeypatch):
    """Losses of steps whose gradients the host never reads: those of DeepSpeed's own, with and without clipping."""
    words = ["training.precision=bf16", f"deepspeed=zero{stage}"]
    kinds = {"": ["training.max_steps=4"], " clipped": ["training.max_steps=4", "training.clip_norm=0.1"]}
    for kind, settings in kinds.items():
        run(f"ours{kind}", *words, *settings)
    monkeypatch.setattr(Engine, "check_on_device", lambda self: None)
    for kind, settings in kinds.items():
        run(f"theirs{kind}", *words, *settings)
    losses = {
        name: [line["loss"] for line in lines(run, name)]
        for name in (f"{a}{b}" for a in ("ours", "theirs") for b in kinds)
    }
    assert losses["ours"] == losses["theirs"] != losses["theirs clipped"]
    assert losses["ours clipped"] == pytest.approx(losses["theirs clipped"], rel=1e-4)


def test_a_feature_cache_changes_nothing_and_spares_decoding(run, monkeypatch, tmp_path):
    """Filled by one run and read by another: equal bits in training, validation and test; and within rounding (a clip
    passes the trunk alone, not in its batch) those of a run without it."""
    plain = ["loader.augment=false", "training.max_steps=12", *VALIDATION]  # 12 steps are more than an epoch
    cached = [*plain, f"loader.feature_cache={tmp_path}/cache"]
    embed = TimeSformer.embed

    def refuse(self, video):
        """FLOPs are counted on the meta device, without a clip."""
        return embed(self, video) if video.is_meta else pytest.fail("a clip was not in the cache")

    for name, words in (("plain", plain), ("cold", cached), ("warm", cached)):
        if name == "warm":
            monkeypatch.setattr(TimeSformer, "embed", refuse)
        run(name, *words)
    found = {name: [line["loss"] for line in lines(run, name) if "loss" in line] for name in ("plain", "cold", "warm")}
    assert found["cold"] == found["warm"] == pytest.approx(found["plain"], rel=1e-5)
    assert same_bits(weights(run, "cold"), weights(run, "warm"))
    scores = [[line.get("validation_accuracy") for line in lines(run, name)] for name in ("plain", "cold", "warm")]
    assert scores[0] == scores[1] == scores[2]
    flops = [json.loads((run.folder / name / "summary.json").read_text()) for name in ("plain", "warm")]
    assert set(flops[0]["model_gflops_by_part"]) - set(flops[1]["model_gflops_by_part"]) == {
        "patch embedding", "frozen blocks",
    }  # fmt: skip


def test_deterministic_runs_give_equal_bits(run, monkeypatch):
    """Losses, weights and momentum of two runs; and torch was in the mode that promises it at every batch."""
    seen, stream = [], Loader.stream

    def watched(self, batches):
        for batch in stream(self, batches):
            seen.append(torch.are_deterministic_algorithms_enabled())
            yield batch

    monkeypatch.setattr(Loader, "stream", watched)
    for name in ("one", "two"):
        run(name, "training.deterministic=true", "training.gc_every_steps=2")
    assert seen == [True] * (2 * STEPS) and not torch.are_deterministic_algorithms_enabled()
    assert [line["loss"] for line in lines(run, "one")] == [line["loss"] for line in lines(run, "two")]
    assert same_bits(weights(run, "one"), weights(run, "two"))


def test_an_operator_that_is_not_deterministic_stops_the_run_by_name(run, monkeypatch):
    """A method with `put_` in its loss trains as long as nobody asks for determinism."""
    forward = ConceptObjective.forward

    def careless(self, video, labels, draw):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
        return forward(self, video, labels, draw)

    monkeypatch.setattr(ConceptObjective, "forward", careless)
    with pytest.raises(RunError, match=r"training\.deterministic=true, but put_ has no"):
        run("strict", "training.deterministic=true")
    assert run("loose", "training.stop_after_steps=1").step == 1
