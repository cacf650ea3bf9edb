"""What a user reads: shared by the tests of loaders and registry."""

import pytest

from prodsim.core import ProdsimError


def message(call, *args, **kwargs):
    "The one line of the ProdsimError that a call must raise."
    with pytest.raises(ProdsimError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert text and "\n" not in text
    return text
