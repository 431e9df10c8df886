from dataclasses import replace

from liquidmm.encode import TokenizerFile


def test_tokenizer_file_is_loaded_once_per_process(image_tokenizer_folder):
    file = TokenizerFile(path=image_tokenizer_folder, device="cpu")
    assert file() is TokenizerFile(path=image_tokenizer_folder, device="cpu")()
    assert file() is not replace(file, precision="bfloat16")()
    assert replace(file, precision="bfloat16")().precision == "bfloat16"
