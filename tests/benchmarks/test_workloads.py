"""A step's job: one token is timed, whole texts calibrate, and exported graphs take those cut to the timed shape."""

import torch

from benchmarks.workloads import CALIBRATION_BATCHES, Workload


def test_a_step_calibrates_on_text() -> None:
    job = Workload("llama", 2, 17, step=True).load()
    assert job.inputs["input_ids"].shape == (2, 1)
    assert [batch["input_ids"].shape for batch in job.calibration] == [(2, 17)] * CALIBRATION_BATCHES
    cut = job.cut_calibration()
    assert all(torch.equal(c["input_ids"], b["input_ids"][:, :1]) for c, b in zip(cut, job.calibration, strict=True))
    with torch.no_grad():
        assert job.module(**job.inputs).shape == (2, 1, 30522)
        assert job.module(**job.calibration[0]).shape == (2, 17, 30522)


def test_a_step_sees_the_tokens_before_it() -> None:
    job = Workload("llama", 2, 17, step=True).load()
    past, (token,) = job.calibration[0]["input_ids"], job.inputs.values()
    with torch.no_grad():
        whole = job.module.model(input_ids=torch.cat((past, token), 1), use_cache=False, logits_to_keep=1).logits
        torch.testing.assert_close(job.module(token), whole, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(job.module(token), whole, rtol=1e-4, atol=1e-4)  # keys are as they were
