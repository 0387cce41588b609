/* Text through a model that has a tokenizer, a template and a stop token (text_model.py). */
#include "check.h"

enum { BOS = 92, STOP = 93, START = 94 };

typedef struct {
    char text[4096];
    size_t len;
    int tokens, ends_of_text;
    uint32_t stop_reason;
} answer;

/* Whether bytes are whole UTF-8 characters; enough for texts that the library checked. */
static int whole_characters(const char *text, size_t len)
{
    for (size_t i = 0; i < len;) {
        unsigned char first = (unsigned char)text[i];
        size_t bytes = first < 0x80 ? 1 : first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : first >= 0xc2 ? 2 : 0;
        if (bytes == 0 || i + bytes > len) return 0;
        for (size_t k = 1; k < bytes; ++k)
            if (((unsigned char)text[i + k] & 0xc0) != 0x80) return 0;
        i += bytes;
    }
    return 1;
}

static int32_t collect(const rrpc_event *event, void *user_data)
{
    answer *all = user_data;
    CHECK(whole_characters(event->text, event->text_len));
    CHECK(all->len + event->text_len < sizeof all->text);
    memcpy(all->text + all->len, event->text, event->text_len + 1);
    all->len += event->text_len;
    if (event->kind == RRPC_EVENT_TOKEN) {
        ++all->tokens;
        CHECK((event->token == STOP) == (event->end_of_text == 1));
        all->ends_of_text += event->end_of_text == 1;
    }
    if (event->kind == RRPC_EVENT_END) all->stop_reason = event->stop_reason;
    return 0;
}

static void the_model_brings_its_defaults(void)
{
    rrpc_engine *engine = open_engine(TEXT_MODEL);
    rrpc_sequence_options options;
    NEED(rrpc_sequence_options_init(engine, &options, sizeof options));
    CHECK(options.temperature == 0.25f && options.top_k == 7 && options.repetition_penalty == 1.5f);
    CHECK(options.top_p == 1 && options.min_p == 0);
    rrpc_engine_info info = {.struct_size = sizeof info};
    NEED(rrpc_engine_get_info(engine, &info));
    CHECK(info.has_tokenizer == 1 && info.has_chat_template == 1);
    uint32_t stop[2] = {0, 0};
    size_t count = 0;
    OK(rrpc_engine_stop_tokens(engine, stop, 2, &count));
    CHECK(count == 1 && stop[0] == STOP);
    FAILS(BUFFER_TOO_SMALL, "room for 1, found room for 0", rrpc_engine_stop_tokens(engine, stop, 0, &count));
    rrpc_engine_free(engine);
}

static void text_becomes_tokens_and_back(void)
{
    rrpc_engine *engine = open_engine(TEXT_MODEL);
    const char *text = "caf\xc3\xa9 <|im_end|>";
    uint32_t ids[32];
    char back[64] = {0};
    size_t count = 0, bytes = 0;
    OK(rrpc_tokenize(engine, text, RRPC_NUL_TERMINATED, RRPC_TOKENIZE_PLAIN, NULL, 0, &count));
    CHECK(count == strlen(text)); /* one token for each byte */
    OK(rrpc_tokenize(engine, text, RRPC_NUL_TERMINATED, RRPC_TOKENIZE_SPECIAL, ids, 32, &count));
    CHECK(count == 7 && ids[3] == 15 && ids[4] == 16 && ids[6] == STOP);
    OK(rrpc_detokenize(engine, ids, count, 0, back, sizeof back, &bytes));
    CHECK(bytes == strlen(text) && memcmp(back, text, bytes) == 0);
    OK(rrpc_detokenize(engine, ids, count, 1, NULL, 0, &bytes));
    CHECK(bytes == 6);
    OK(rrpc_tokenize(engine, text, RRPC_NUL_TERMINATED, RRPC_TOKENIZE_PROMPT, ids, 32, &count));
    CHECK(count == 8 && ids[0] == BOS && ids[7] == STOP);
    OK(rrpc_tokenize(engine, text, 3, RRPC_TOKENIZE_PLAIN, ids, 3, &count));
    CHECK(count == 3);
    FAILS(BUFFER_TOO_SMALL, "room for 3, found room for 2",
          rrpc_tokenize(engine, text, 3, RRPC_TOKENIZE_PLAIN, ids, 2, &count));
    CHECK(count == 3);
    FAILS(BUFFER_TOO_SMALL, "", rrpc_detokenize(engine, ids, 3, 0, back, 2, &bytes));
    FAILS(INVALID_ARGUMENT, "mode", rrpc_tokenize(engine, text, 3, 3, ids, 32, &count));
    FAILS(INVALID_ARGUMENT, "skip_special", rrpc_detokenize(engine, ids, 3, 2, back, 64, &bytes));
    FAILS(INVALID_ARGUMENT, "UTF-8, found other bytes from byte 3",
          rrpc_tokenize(engine, text, 4, RRPC_TOKENIZE_PLAIN, ids, 32, &count));
    FAILS(INVALID_ARGUMENT, "at most",
          rrpc_tokenize(engine, text, (size_t)1 << 40, RRPC_TOKENIZE_PLAIN, ids, 32, &count));
    FAILS(INVALID_ARGUMENT, "at most", rrpc_detokenize(engine, ids, (size_t)1 << 40, 0, back, 64, &bytes));
    ids[0] = 500;
    FAILS(TEXT, "500", rrpc_detokenize(engine, ids, 1, 0, back, 64, &bytes));
    rrpc_engine_free(engine);
}

static void chats_are_written_by_the_template(void)
{
    rrpc_engine *engine = open_engine(TEXT_MODEL);
    rrpc_sequence *sequence = NULL;
    NEED(rrpc_sequence_create(engine, NULL, &sequence));
    /* What spells a control token in a message is no control token. */
    rrpc_message messages[] = {{{"system", 6}, {"be kind", RRPC_NUL_TERMINATED}},
                               {{"user", RRPC_NUL_TERMINATED}, {"<|im_end|>", 10}}};
    const char *expected = "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\n<|im_end|><|im_end|>\n"
                           "<|im_start|>assistant\n";
    OK(rrpc_sequence_append_chat(sequence, messages, 2));
    uint32_t ids[128];
    size_t count = 0, bytes = 0, starts = 0, stops = 0;
    OK(rrpc_sequence_tokens(sequence, ids, 128, &count));
    for (size_t i = 0; i < count; ++i) {
        starts += ids[i] == START;
        stops += ids[i] == STOP;
    }
    CHECK(starts == 3 && stops == 2);
    char text[256] = {0};
    OK(rrpc_detokenize(engine, ids, count, 0, text, sizeof text, &bytes));
    CHECK(strcmp(text, expected) == 0);

    size_t before = count;
    rrpc_message unknown = {{"wizard", 6}, {"hi", 2}}, broken = {{"user", 4}, {"\xff", 1}};
    FAILS(INVALID_ARGUMENT, "wizard", rrpc_sequence_append_chat(sequence, &unknown, 1));
    FAILS(INVALID_ARGUMENT, "messages[0].content: expected UTF-8", rrpc_sequence_append_chat(sequence, &broken, 1));
    FAILS(INVALID_ARGUMENT, "at most 65536 items", rrpc_sequence_append_chat(sequence, messages, 65537));
    FAILS(INVALID_ARGUMENT, "UTF-8", rrpc_sequence_append_text(sequence, "ok\xff", 3));
    OK(rrpc_sequence_tokens(sequence, NULL, 0, &count));
    CHECK(count == before);
    OK(rrpc_sequence_append_text(sequence, "more", RRPC_NUL_TERMINATED)); /* no second beginning */
    OK(rrpc_sequence_tokens(sequence, NULL, 0, &count));
    CHECK(count == before + 4);
    rrpc_sequence_free(sequence);

    NEED(rrpc_sequence_create(engine, NULL, &sequence));
    OK(rrpc_sequence_append_text(sequence, "raw<|im_end|>", RRPC_NUL_TERMINATED));
    OK(rrpc_sequence_tokens(sequence, ids, 128, &count));
    CHECK(count == 5 && ids[0] == BOS && ids[4] == STOP);
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

static void templates_that_cannot_be_rendered(void)
{
    const char *models[] = {environment("ABI_NO_TEMPLATE_MODEL"), environment("ABI_ENDLESS_MODEL")};
    for (int i = 0; i < 2; ++i) {
        rrpc_engine *engine = open_engine(models[i]);
        rrpc_engine_info info = {.struct_size = sizeof info};
        NEED(rrpc_engine_get_info(engine, &info));
        CHECK(info.has_tokenizer == 1 && info.has_chat_template == (uint32_t)i);
        rrpc_sequence *sequence = prompted(engine);
        rrpc_message message = {{"user", 4}, {"hi", 2}};
        FAILS(TEMPLATE, "template", rrpc_sequence_append_chat(sequence, &message, 1));
        /* Both are alive. */
        OK(rrpc_sequence_append_text(sequence, "hi", 2));
        rrpc_generate_options options = at_most(3);
        OK(rrpc_generate(sequence, &options, NULL, NULL, NULL));
        rrpc_sequence_free(sequence);
        rrpc_engine_free(engine);
    }
}

static void a_stop_token_ends_the_answer_or_is_shown(void)
{
    rrpc_engine *engine = open_engine(TEXT_MODEL);
    rrpc_sequence *sequence = prompted(engine);
    answer all = {0};
    rrpc_generate_result result = {.struct_size = sizeof result};
    OK(rrpc_generate(sequence, NULL, collect, &all, &result));
    CHECK(result.stop_reason == RRPC_STOP_EOS && all.stop_reason == RRPC_STOP_EOS);
    CHECK(result.tokens == 6 && all.ends_of_text == 1);
    CHECK(strstr(all.text, "<|im_end|>") == NULL);
    rrpc_sequence_free(sequence);

    sequence = prompted(engine);
    memset(&all, 0, sizeof all);
    rrpc_generate_options options = at_most(ANSWER_LENGTH);
    options.ignore_eos = 1;
    OK(rrpc_generate(sequence, &options, collect, &all, &result));
    CHECK(result.tokens == ANSWER_LENGTH && all.ends_of_text == 1);
    CHECK(strstr(all.text, "<|im_end|>") != NULL);
    /* 16 alone is half a character, 15 and 16 are a whole one, streamed as one. */
    CHECK(strstr(all.text, "\xef\xbf\xbd<|im_end|>\xc3\xa9") != NULL);
    char text[256] = {0};
    size_t bytes = 0;
    OK(rrpc_detokenize(engine, ANSWER, ANSWER_LENGTH, 0, text, sizeof text, &bytes));
    CHECK(bytes == all.len && memcmp(text, all.text, bytes) == 0);
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

static void stop_strings_are_found_across_tokens(void)
{
    rrpc_engine *engine = open_engine(TEXT_MODEL);
    char text[256] = {0};
    size_t bytes = 0;
    OK(rrpc_detokenize(engine, ANSWER, ANSWER_LENGTH, 0, text, sizeof text, &bytes));
    /* Three characters, the first of two bytes, each a token or two. */
    const char *at = strstr(text, "\xc3\xa9");
    CHECK(at != NULL);
    rrpc_text stop[] = {{"nothing of that", RRPC_NUL_TERMINATED}, {at, 4}};
    rrpc_generate_options options = at_most(64);
    options.ignore_eos = 1;
    options.stop = stop;
    options.stop_count = 2;
    rrpc_sequence *sequence = prompted(engine);
    answer all = {0};
    rrpc_generate_result result = {.struct_size = sizeof result};
    OK(rrpc_generate(sequence, &options, collect, &all, &result));
    CHECK(result.stop_reason == RRPC_STOP_STRING);
    CHECK(all.len == (size_t)(at - text) && memcmp(all.text, text, all.len) == 0);
    rrpc_text empty = {"", 0};
    options.stop = &empty;
    options.stop_count = 1;
    FAILS(INVALID_ARGUMENT, "", rrpc_generate(sequence, &options, NULL, NULL, NULL));
    rrpc_sequence_free(sequence);
    rrpc_engine_free(engine);
}

static void seeds_replay(void)
{
    rrpc_engine *engine = open_engine(TEXT_MODEL);
    uint32_t drawn[3][40];
    for (int run = 0; run < 3; ++run) {
        rrpc_sequence_options options = plain_options(engine);
        options.temperature = 1.5f;
        options.seed = run == 2 ? 8 : 7;
        rrpc_sequence *sequence = NULL;
        NEED(rrpc_sequence_create(engine, &options, &sequence));
        NEED(rrpc_sequence_append_tokens(sequence, PROMPT, PROMPT_LENGTH));
        rrpc_generate_options generate = at_most(40 - PROMPT_LENGTH);
        generate.ignore_eos = 1;
        NEED(rrpc_generate(sequence, &generate, NULL, NULL, NULL));
        size_t count = 0;
        OK(rrpc_sequence_tokens(sequence, drawn[run], 40, &count));
        rrpc_sequence_free(sequence);
    }
    CHECK(memcmp(drawn[0], drawn[1], sizeof drawn[0]) == 0);
    CHECK(memcmp(drawn[0], drawn[2], sizeof drawn[0]) != 0);
    rrpc_engine_free(engine);
}

int main(void)
{
    RUN(the_model_brings_its_defaults);
    RUN(text_becomes_tokens_and_back);
    RUN(chats_are_written_by_the_template);
    RUN(templates_that_cannot_be_rendered);
    RUN(a_stop_token_ends_the_answer_or_is_shown);
    RUN(stop_strings_are_found_across_tokens);
    RUN(seeds_replay);
    return check_end("text");
}
