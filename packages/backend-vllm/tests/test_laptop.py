"""What is chosen for CPUs, and that the user's choice comes first."""

from __future__ import annotations

from dynamo.vllm.laptop import cpu_arguments, one_process


def test_defaults_where_nothing_is_chosen():
    arguments = cpu_arguments({"model": "m"}, {})
    assert (arguments["block_size"], arguments["dtype"], arguments["enforce_eager"]) == (32, "float32", True)
    assert 0 < arguments["kv_cache_memory_bytes"] <= 1 << 30
    assert "model" not in arguments


def test_what_the_user_chose_stays():
    chosen = {"block_size": 64, "dtype": "bfloat16", "enforce_eager": False, "max_model_len": 2048}
    assert not chosen.keys() & cpu_arguments(chosen, {}).keys()


def test_one_way_to_size_the_cache_is_enough():
    for chosen in (
        {"gpu_memory_utilization": 0.2},
        {"num_gpu_blocks_override": 64},
        {"kv_cache_memory_bytes": 1 << 20},
    ):
        assert "kv_cache_memory_bytes" not in cpu_arguments(chosen, {})
    assert "kv_cache_memory_bytes" not in cpu_arguments({}, {"VLLM_CPU_KVCACHE_SPACE": "2"})


def test_only_a_model_in_one_piece_gets_one_process():
    assert one_process({"tensor_parallel_size": 1})
    assert not one_process({"tensor_parallel_size": 2})
    assert not one_process({"data_parallel_size": 2})
