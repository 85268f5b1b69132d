"""What an experiment, a data set's entry and a feature may say: the fields that do not depend on the model.

`settings_schema` adds the arguments of the model's, the loader's and the trainer's constructors and checks experiments.
What each setting does stands in its class's docstring, `Attributes`, as that of an argument stands in its constructor's
`Args`: `setting_docs` reads both.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mm_fibinet import setting_types as types
from mm_fibinet.metrics import METRICS, OTHER_NAMES

OPTIMIZERS = ("adam", "Adam", "AdamW", "SGD", "Adagrad", "RMSprop", "NAdam", "RAdam", "Adamax", "Adadelta")
METRIC_NAMES = (*METRICS, *OTHER_NAMES)
NORMALIZERS = ("StandardScaler", "MinMaxScaler", "none")
SOURCES = ("", "user", "item", "context")
ABSENT: Any = None  # of what need not be there, and is no null when it is


class Strict(BaseModel):
    """No other names, no conversions, no infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class Feature(Strict):
    """What all entries of feature_cols have.

    Attributes:
        name: the column; several that share the rest of the entry may stand in one list.
        active: False leaves the feature out.
        source: what the column is of: `item` is looked up in item_info by item_id, `user` in user_info by user_id
            where there is one; anything else is a column of the split.
    """

    name: Annotated[
        types.Column | Annotated[list[types.Column], Field(min_length=1, max_length=10_000)],
        Field(description="the name of a column, or a list of such names"),
    ]
    active: types.Flag = True
    source: Annotated[str, types.one_of(SOURCES, none='""')] = ""


class MetaFeature(Feature):
    """A column that is no field: the user of gAUC, the history.

    Attributes:
        type: this kind.
    """

    type: Annotated[Literal["meta"], Field(description="meta")]


class NumericFeature(Feature):
    """A number a row.

    Attributes:
        type: this kind.
        normalizer: how it is scaled, by numbers of the training split that the run keeps: to mean 0 and deviation 1,
            to 0..1, or not at all.
        fill_na: stands in for a null; without it a null is an error.
        embedding_dim: width of the field, in place of the experiment's; models of fields have one width for all.
    """

    type: Annotated[Literal["numeric"], Field(description="numeric")]
    normalizer: Annotated[str | None, types.one_of([*NORMALIZERS, None], "null")] = "StandardScaler"
    fill_na: types.Number = ABSENT
    embedding_dim: types.Width = ABSENT


class IdFeature(Feature):
    """Ids with a table of embeddings.

    Attributes:
        vocab_size: rows of the table, ids being below it; read from the files where it is left out.
        embedding_dim: width of the table, in place of the experiment's.
        share_embedding: a feature before this one, whose table this one uses.
    """

    vocab_size: types.Size = ABSENT
    embedding_dim: types.Width = ABSENT
    share_embedding: types.Column = ABSENT


class CategoricalFeature(IdFeature):
    """An id a row.

    Attributes:
        type: this kind.
        fill_na: stands in for a null; without it a null is an error.
    """

    type: Annotated[Literal["categorical"], Field(description="categorical")]
    fill_na: Annotated[int, Field(ge=0, le=types.MAX_SIZE, description="an id, a whole number from 0")] = ABSENT


class SequenceFeature(IdFeature):
    """A list of ids a row, padded with zeros in front and pooled.

    Attributes:
        type: this kind.
        max_len: ids of a row that are read; the length of the file's lists where it is left out.
        feature_encoder: how the embeddings of a row's ids become one: their mean or their sum. null leaves them as they
            are, [L, D] a row, for a FuxiCTR model that attends to them itself; models of model_zoo take their mean.
    """

    type: Annotated[Literal["sequence"], Field(description="sequence")]
    max_len: types.Size = ABSENT
    feature_encoder: Annotated[str | None, types.one_of([*types.SEQUENCE_ENCODERS, None], "null")] = (
        types.SEQUENCE_ENCODERS[0]
    )


class EmbeddingFeature(Feature):
    """A vector a row.

    Attributes:
        type: this kind.
        pretrain_dim: numbers of the vector; read from the files where it is left out.
        embedding_dim: width of the field that a learned projection makes of it, in place of the experiment's.
        scale: what the numbers are multiplied by, for columns of int8.
    """

    type: Annotated[Literal["embedding"], Field(description="embedding")]
    pretrain_dim: types.Width = ABSENT
    embedding_dim: types.Width = ABSENT
    scale: types.Positive = ABSENT


class Label(Strict):
    """The label's column, 0 or 1.

    Attributes:
        name: the column.
    """

    name: types.Column


class FeatureSpec(Strict):
    """An entry of feature_specs: changes to features of the data set.

    Attributes:
        name: the feature, or several in a list.
        embedding_dim, share_embedding, feature_encoder: in place of what the data set's entry says.
    """

    name: Annotated[
        types.Column | Annotated[list[types.Column], Field(min_length=1, max_length=10_000)],
        Field(description="the name of a feature, or a list of such names"),
    ]
    embedding_dim: types.Width = ABSENT
    share_embedding: types.Column = ABSENT
    feature_encoder: Annotated[str | None, types.one_of([*types.SEQUENCE_ENCODERS, None], "null")] = ABSENT


FEATURES: dict[str, type[Strict]] = {
    "meta": MetaFeature,
    "numeric": NumericFeature,
    "categorical": CategoricalFeature,
    "sequence": SequenceFeature,
    "embedding": EmbeddingFeature,
}
ENTRIES: dict[str, type[Strict]] = {"feature_specs": FeatureSpec, "label_col": Label}
OptionalPath = Annotated[types.Path | None, Field(description="a path, or null")]
AnyFeature = Annotated[
    MetaFeature | NumericFeature | CategoricalFeature | SequenceFeature | EmbeddingFeature, Field(discriminator="type")
]
MonitorWeights = Annotated[
    dict[Annotated[str, types.one_of(METRIC_NAMES)], types.Number],
    Field(min_length=1, description=f"a metric ({', '.join(METRIC_NAMES)}), or several with weights: {{AUC: 1}}"),
]


Loss = Annotated[
    Annotated[str, types.one_of(types.LOSSES)]
    | Annotated[dict[Annotated[str, types.one_of(types.LOSS_TERMS)], types.Positive], Field(min_length=1)],
    Field(
        description=f"one of {', '.join(types.LOSSES)}, or weights above 0 of {', '.join(types.LOSS_TERMS)}: "
        "{bce: 0.8, pairwise: 0.2}"
    ),
]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


def _as_weights(value: Any) -> Any:
    return {value: 1.0} if isinstance(value, str) else value


class DatasetEntry(Strict):
    """A data set's entry: its files and its columns.

    Attributes:
        data_root: the folder that `--data_root` puts another in place of, at the front of the files' paths.
        train_data, valid_data: the splits: parquet files, or folders of part files.
        test_data: the split that prediction.py scores; needs no label.
        item_info: the items by item_id: ids, tags, embeddings. Data without a history need none.
        item_feature: the catalogue; training reads the items' levels of it where item_info lacks them.
        user_info: the users' histories, once a user, where they are not in the rows.
        feature_cols: the features; see below.
        label_col: the label's column.
    """

    data_root: types.Path = "."
    train_data: types.Path
    valid_data: types.Path
    test_data: OptionalPath = None
    item_info: OptionalPath = None
    item_feature: OptionalPath = None
    user_info: OptionalPath = None
    feature_cols: Annotated[list[AnyFeature], Field(min_length=1, max_length=10_000, description="a list of features")]
    label_col: Annotated[
        list[Label], BeforeValidator(_as_list), Field(min_length=1, max_length=1, description="one label column")
    ] = [Label(name="label")]


class RunSettings(Strict):
    """What a run is, whatever its model: the names that FuxiCTR's BaseModel and scripts read.

    Attributes:
        model: a class of model_zoo, or `package.module:Class`.
        dataset_id: the data set's entry in the config folder, or a folder data/DATASET_ID of build_dataset.py.
        model_root: the folder that runs are kept in; `--model_root` on the command line.
        verbose: 0 leaves out the bars and lines of training and scoring.
        seed: of weights, dropout and the order of the rows.
        epochs: passes over the training split, at most.
        batch_size: rows a batch, of all GPUs together.
        shuffle: a new order of the training rows every epoch.
        max_len: positions of the history that are read, the last ones.
        loss: cross entropy, or several losses with weights.
        pos_weight: weight of a click in bce and focal.
        focal_gamma: of the focal loss: (1 - q) to this power, q the probability of what happened.
        task: there is one.
        optimizer: torch's, by name.
        learning_rate: of the optimizer, before any schedule.
        metrics: what is computed at an evaluation.
        monitor: the metric, or the weighted sum, by which the best weights are chosen.
        monitor_mode: which way it is better; follows from the monitor, and another value is refused.
        group_id: the column whose groups gAUC is of.
        use_features: the features that are used, of those of the data set, in the order of their fields; null for all.
        feature_specs: changes to features of the data set, for this experiment.
        user_id_field: user_id is a field, where the data set's entry has it as meta.
        tensorboard: evaluations are written as TensorBoard event files, too; needs the extra tensorboard.
    """

    model: types.Text
    dataset_id: types.Text
    model_root: types.Path = "./checkpoints/"
    verbose: Annotated[int, Field(ge=0, le=9, description="a whole number from 0 to 9")] = 1
    seed: types.Seed = 2025
    epochs: types.Size = 10
    batch_size: types.Size = 4096
    shuffle: types.Flag = True
    max_len: types.Size = 100  # of the challenge's loader
    loss: Loss = "binary_crossentropy"
    pos_weight: types.Positive = 1.0
    focal_gamma: Annotated[float, Field(ge=0, description="a number from 0")] = 2.0
    task: Annotated[str, types.one_of(["binary_classification"])] = "binary_classification"
    optimizer: Annotated[str, types.one_of(OPTIMIZERS)] = "adam"
    learning_rate: types.Positive = 1e-3
    metrics: Annotated[
        list[Annotated[str, types.one_of(METRIC_NAMES)]],
        Field(min_length=1, max_length=len(METRIC_NAMES), description=f"a list out of {', '.join(METRIC_NAMES)}"),
    ] = ["AUC", "logloss"]
    monitor: Annotated[MonitorWeights, BeforeValidator(_as_weights), MonitorWeights.__metadata__[0]] = {"AUC": 1}
    monitor_mode: Annotated[str, types.one_of(["max", "min"])] = "max"
    group_id: Annotated[types.Column | None, Field(description="the name of a column, or null")] = None
    use_features: Annotated[
        Annotated[types.Columns, Field(min_length=1)] | None,
        Field(description="a list of names of features, or null"),
    ] = None
    feature_specs: Annotated[
        Annotated[list[FeatureSpec], Field(max_length=10_000)] | None,
        Field(description="a list of mappings with a name, or null"),
    ] = None
    user_id_field: types.Flag = False
    tensorboard: types.Flag = False


class Experiment(RunSettings, DatasetEntry):
    """An experiment and its data set, merged; the constructors' arguments are added for each model class."""

    arguments: ClassVar[dict[str, object]] = {}
