"""Parameters: params.yaml, parsed once into a frozen tree, and the strict reader of every file that people write."""

from mdpr.params.describing import DescribeParams, EncodeParams, LlmParams, ProbeParams
from mdpr.params.documents import dump_yaml, parse_json, parse_yaml, read_json, read_text, read_yaml
from mdpr.params.parsing import SECTIONS, Params, apply_overrides, choices, load_params, parse_params, read_value
from mdpr.params.preparing import PrepareParams, ValidateParams
from mdpr.params.releasing import MAX_TOP_K, EvaluateParams, PromoteParams, RegisterParams, TrackingParams
from mdpr.params.section import DIFFERENTIAL, DIMENSIONS, Section, fault_line, input_paths
from mdpr.params.tuning import BackboneParams, LossParams, TuneParams
