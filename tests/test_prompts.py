from liquidmm import prompts


def test_wording_matches_the_published_checkpoint():
    assert prompts.REQUEST == " Generate an image based on this description."
    assert prompts.CAPTION_PROMPT == "The caption of this image is:"
    assert prompts.size_hint(512, 256) == " Image Size: Width is 512 Height is 256."


def test_requests_are_ten_different_sentences():
    assert len(set(prompts.REQUESTS)) == 10
    assert prompts.REQUESTS[0] == prompts.REQUEST
    assert all(request.startswith(" ") and request.endswith(".") for request in prompts.REQUESTS)


def test_text_to_image_prompt_joins_caption_hint_and_request():
    assert prompts.text_to_image_prompt(" a cat ") == (
        "a cat Generate an image based on this description."
    )
    assert prompts.text_to_image_prompt("a cat", " Draw.", (64, 32)) == (
        "a cat Image Size: Width is 64 Height is 32. Draw."
    )
