"""The runs of SC2: a language model trained stage by stage, what is measured on it, and on fewer of its tokens.

V words, T tokens a sequence, B sequences a batch, d width, E experts, k experts a token, h hidden width.
"""

from dataclasses import dataclass, replace

__all__ = ["BASE", "QUICK", "Authors", "Config", "Measured", "Stage", "Text", "Thinned", "stages"]


@dataclass(frozen=True)
class Text:
    """Which text: where it lies ("" for what is found by itself), what it is called, a digest of its words, and whether
    its documents have topics."""

    path: str = ""
    name: str = ""
    digest: str = ""
    topics: bool = False


@dataclass(frozen=True)
class Config:
    """One language model and how it is trained; the defaults are the primary interpretation of SC2's set-up."""

    seed: int = 0
    text: Text = Text()
    V: int = 4000  # words, <unk> and <eos> among them
    T: int = 64
    B: int = 32
    E: int = 8  # 1 is the dense baseline
    k: int = 2
    d: int = 64
    h: int = 128
    layers: int = 3
    heads: int = 4
    kind: str = "gpt"  # LayerNorm, learned positions, GELU; or "mixtral": RMSNorm, rotary positions, SwiGLU
    steps: int = 400
    parts: int = 4  # stages in which it is trained: a run that was killed goes on from the last
    lr: float = 6e-3
    decay: float = 0.01
    balance: float = 0.0  # weight of Switch's balance loss
    one_topic: bool = False  # each batch is of one topic
    dtype: str = "float32"  # trained in; measured in float64
    held: int = 512  # held-out sequences that the loss is taken on
    tokens: int = 2048  # held-out tokens that are measured
    choices: int = 512  # held-out sequences whose choices are counted by token, position, document and topic
    spectra: int = 512  # of which so many have their whole layer's Jacobian decomposed
    draws: int = 20  # of each random null model

    @property
    def label(self) -> str:
        """What progress and errors call it."""
        kind = "dense" if self.E == 1 else "soft" if self.k == self.E else f"top-{self.k}"
        wide = "wide " * (self.E == 1 and self.h > 2 * self.d)
        layers = " with Mixtral's layers" * (self.kind == "mixtral")
        more = f", balance loss {self.balance:g}" * bool(self.balance) + ", one topic a batch" * self.one_topic
        return f"{wide}{kind} language model{layers} on {self.text.name or 'text'}{more}, seed {self.seed}"


@dataclass(frozen=True)
class Stage:
    """Training from the stage before up to this step."""

    model: Config
    until: int

    def reads(self) -> tuple["Stage", ...]:
        """The stage before; none at the start."""
        before = [stage for stage in stages(self.model) if stage.until < self.until]
        return tuple(before[-1:])

    @property
    def label(self) -> str:
        """What progress and errors call it."""
        start = self.reads()[0].until if self.reads() else 0
        return f"{self.model.label}, steps {start} to {self.until}"


def stages(model: Config) -> tuple[Stage, ...]:
    """The stages of a model, the last at its end."""
    ends = {max(1, round(model.steps * (i + 1) / model.parts)) for i in range(model.parts)}
    return tuple(Stage(model, end) for end in sorted(ends))


@dataclass(frozen=True)
class Measured:
    """What is measured on a model at the ends of its stages."""

    model: Config

    def reads(self) -> tuple[Stage, ...]:
        """All stages."""
        return stages(self.model)

    @property
    def label(self) -> str:
        """What progress and errors call it."""
        return f"{self.model.label}, measured"


@dataclass(frozen=True)
class Thinned:
    """A model on random subsets of its tokens, whose mean n_eff over the experts is that of another model."""

    model: Config
    to: Config

    def reads(self) -> tuple[Stage, Stage]:
        """The last stages of both."""
        return stages(self.model)[-1], stages(self.to)[-1]

    @property
    def label(self) -> str:
        """What progress and errors call it."""
        return f"{self.model.label}, at the n_eff of {self.to.label}"


@dataclass(frozen=True)
class Authors:
    """Texts written by several models, all read by the first."""

    models: tuple[Config, ...]

    def reads(self) -> tuple[Stage, ...]:
        """The last stages of all."""
        return tuple(stages(model)[-1] for model in self.models)

    @property
    def label(self) -> str:
        """What progress and errors call it."""
        return f"{self.models[0].label}, reading texts of {len(self.models)} models"


BASE = Config()
QUICK = replace(
    BASE,
    V=300,
    T=16,
    B=8,
    E=4,
    d=16,
    h=32,
    layers=3,
    heads=2,
    steps=24,
    parts=2,
    held=16,
    tokens=192,
    choices=24,
    spectra=64,
    draws=3,
)
