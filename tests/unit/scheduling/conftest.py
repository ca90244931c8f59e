"""The conformance cases are asserted as tests are."""

import pytest

pytest.register_assert_rewrite("conformance", "conformance_life", "conformance_state", "conformance_fairness")
