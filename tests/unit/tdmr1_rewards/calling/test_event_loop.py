"""Rewards with asynchronous functions: one event loop for the life of a reward."""

import asyncio
import gc
import threading

import pytest
from PIL import Image
from support.reward_batches import active, make_batch

from tdmr1_rewards.api import RewardResult
from tdmr1_rewards.calling.event_loop import EventLoop
from tdmr1_rewards.calling.process import ProcessHost
from tdmr1_rewards.calling.reference import Reference
from tdmr1_rewards.scoring.runner import RewardRunner
from tdmr1_rewards.sources.foreign import adapt

pytestmark = [
    pytest.mark.unit,
    pytest.mark.filterwarnings("error::RuntimeWarning", "error::pytest.PytestUnraisableExceptionWarning"),
]


def conventions():
    """One asynchronous reward of each convention. All share a semaphore, which belongs to the loop that waits first."""
    semaphore = asyncio.Semaphore(1)

    async def value(number):
        async with semaphore:
            await asyncio.sleep(0.001)
            return float(number)

    async def values(count):
        return await asyncio.gather(*(value(i) for i in range(count)))

    async def batch(images, prompts, metadata):
        return await values(len(prompts)), {}

    async def single(prompt, image):
        assert isinstance(image, Image.Image)
        return await value("abc".index(prompt))

    async def trl(prompts, completions, **columns):
        return await values(len(completions))

    def one_for_each(images, prompts):
        return [value(i) for i in range(len(prompts))]

    async def native(batch):
        return RewardResult(await values(len(batch)))

    class Trl:
        async def __call__(self, prompts, completions, **columns):
            return await values(len(completions))

    class Scorer:
        async def score(self, pixels, prompts):
            return await values(len(prompts))

    class Native:
        async def setup(self, device):
            self.device = device

        async def __call__(self, batch):
            assert self.device == "cpu"
            return RewardResult(await values(len(batch)))

        async def close(self):
            await value(0)

    async def factory():
        await values(2)
        return batch

    async def factory_of_native(device):
        await values(2)
        return Native()

    return {
        "batch": batch,
        "single": single,
        "trl": trl,
        "one_for_each": one_for_each,
        "native": native,
        "Trl": Trl,
        "Scorer": Scorer,
        "Native": Native,
        "factory": factory,
        "factory_of_native": factory_of_native,
    }


def loop_threads():
    return [thread for thread in threading.enumerate() if thread.name == "reward-loop"]


@pytest.mark.parametrize("name", list(conventions()))
def test_every_convention_is_awaited_and_a_semaphore_works_over_several_batches(name):
    before = len(loop_threads())
    reward = adapt(conventions()[name], owner="here")
    with RewardRunner([active(reward)], "weighted_sum", 1) as runner:
        for _ in range(3):
            assert runner.score(make_batch("a", "b", "c")).per_reward["x"] == [0.0, 1.0, 2.0]
        assert len(loop_threads()) == before + 1
    gc.collect()
    assert len(loop_threads()) == before


def test_single_images_are_awaited_together():
    everyone = asyncio.Barrier(3)

    async def single(prompt, image):
        await asyncio.wait_for(everyone.wait(), 20)
        return 1.0

    assert adapt(single)(make_batch("a", "b", "c")).scores == [1.0] * 3


def test_an_asynchronous_reward_in_another_process(tmp_path):
    (tmp_path / "waits.py").write_text(
        "import asyncio\n"
        "SEMAPHORE = asyncio.Semaphore(1)\n"
        "async def one(number):\n"
        "    async with SEMAPHORE:\n"
        "        await asyncio.sleep(0.001)\n"
        "        return float(number)\n"
        "async def reward(prompts, completions, **columns):\n"
        "    return await asyncio.gather(*map(one, range(len(prompts))))\n"
        "class Native:\n"
        "    async def __call__(self, batch):\n"
        "        from tdmr1_rewards import RewardResult\n"
        "        return RewardResult(await asyncio.gather(*map(one, range(len(batch)))))\n"
    )
    for attribute in ("reward", "Native"):
        reference = Reference(
            factory={"file": str(tmp_path / "waits.py"), "attr": attribute},
            adapter="tdmr1_rewards.sources.foreign:adapt",
        )
        host = ProcessHost(reference, "here", "pil")
        host.start()
        try:
            host.setup("cpu")
            for _ in range(2):
                assert host.call(make_batch("a", "b")).scores == [0.0, 1.0]
        finally:
            host.close()


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), asyncio.CancelledError()])
def test_an_error_reaches_the_caller_and_the_loop_goes_on(error):
    async def fails():
        raise error

    async def works():
        return 1

    loop = EventLoop()
    with pytest.raises(type(error)):
        loop.call(fails)
    with pytest.raises(type(error)):
        loop.results([works(), fails()])
    assert loop.call(works) == 1
    assert loop.results([works(), 2]) == [1, 2]
    loop.close()


def test_closing_cancels_what_still_runs():
    ended = []

    async def background():
        try:
            await asyncio.sleep(600)
        finally:
            ended.append(True)

    async def start():
        task = asyncio.ensure_future(background())
        await asyncio.sleep(0)
        return task

    loop = EventLoop()
    task = loop.call(start)
    loop.close()
    loop.close()
    assert ended == [True]
    assert task.cancelled()


def test_an_ordinary_function_starts_no_thread():
    before = loop_threads()
    loop = EventLoop()
    assert loop.call(len, "abc") == 3
    loop.close()
    assert loop_threads() == before
