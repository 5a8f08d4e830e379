"""What each quarantine code and each stage of the work means to the person who reads the account, and what helps."""

from dataclasses import dataclass

from pipeline.base.errors import Code, Stage


@dataclass(frozen=True)
class Advice:
    """One sentence on what happened, one on what to do."""

    meaning: str
    remedy: str


_AGAIN = "leukoray score --retry-quarantined RUN reads it again."
REMEDIES: dict[Code, str] = {
    Code.NOT_FOUND: f"Restore it if it is missed; {_AGAIN}",
    Code.ACCESS_DENIED: f"Grant read access; {_AGAIN}",
    Code.IO_ERROR: f"Look at the disk or store; {_AGAIN}",
    Code.TIMEOUT: f"Look at the network; {_AGAIN}",
    Code.CHANGED: f"Let the upload end; {_AGAIN}",
    Code.EMPTY: "Copy or export it again.",
    Code.TOO_LARGE: "Raise --max-bytes if such files are meant to be scored.",
    Code.TOO_MANY_PIXELS: "Cut whole slides into fields, or raise --max-pixels.",
    Code.TOO_MANY_FRAMES: "Save the frame that counts, or raise --max-frames.",
    Code.UNSUPPORTED_FORMAT: "Convert it, install the extra its message names and retry, or use --exclude.",
    Code.TRUNCATED: "Copy it again from where it came from.",
    Code.CORRUPT: "Copy or export it again; look at the disk it lay on.",
    Code.UNSAFE_PATH: "Find out who made this archive; pack it anew.",
    Code.CRASHED_DECODER: "Report the file to the makers of the decoder; where memory was short, retry it with more.",
    Code.PREDICT_FAILED: "Evaluate the model; if other images fail too, publish it again.",
}
SYNTHETIC = "the model was trained on synthetic images: its scores mean nothing about real blood"
UNKNOWN = Advice("Written by another version of leukoray.", "Read the message column in quarantine/.")

STAGES: dict[str, Advice] = {
    Stage.FETCH.value: Advice(
        "waiting for bytes", "the disk, store or network sets the pace: more workers, or nearer data"
    ),
    Stage.DECODE.value: Advice("encoded bytes to pixels", "more cores make the run faster"),
    Stage.PREDICT.value: Advice("the model", "more cores, a GPU or a smaller model make the run faster"),
    Stage.WRITE.value: Advice("parts to the output", "the store of the output sets the pace"),
}


def of_code(code: str) -> Advice:
    return Advice(Code(code).meaning, REMEDIES[Code(code)]) if code in set(Code) else UNKNOWN


def of_stage(stage: str) -> Advice:
    return STAGES.get(stage, Advice("", ""))
