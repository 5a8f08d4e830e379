"""What the metrics are called where a person reads them, in the order in which they are shown."""

from collections.abc import Mapping

METRIC_NAMES = {
    "sensitivity": "Sensitivity (recall)",
    "specificity": "Specificity",
    "precision": "Precision (positive predictive value)",
    "f1": "F1",
    "f1_macro": "F1, mean of classes",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "roc_auc": "ROC-AUC",
    "roc_auc_macro": "ROC-AUC, mean of classes",
    "pr_auc": "PR-AUC (average precision)",
    "brier": "Brier score",
    "ece": "Calibration error (ECE)",
}

MAIN_METRICS: Mapping[str, tuple[str, ...]] = {  # that a reader is shown first, by task
    "binary": ("sensitivity", "specificity", "roc_auc", "balanced_accuracy"),
    "multiclass": ("accuracy", "balanced_accuracy", "roc_auc_macro", "f1_macro"),
}
