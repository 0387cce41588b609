/* Figures of an engine, as a struct and as text. */
#include "check.h"

static rrpc_engine *engine;

static double in_text(const char *text, const char *name)
{
    char line[128];
    snprintf(line, sizeof line, "\nreasoning_rpc_%s ", name);
    const char *found = strstr(text, line);
    return CHECK(found != NULL) ? strtod(found + strlen(line), NULL) : -1;
}

static void figures_are_those_of_the_work(void)
{
    rrpc_sequence_options options = plain_options(engine);
    options.policy = RRPC_POLICY_RPC;
    options.interval = 16;
    options.window = 4;
    options.ratio = 4;
    rrpc_sequence *sequence = NULL;
    NEED(rrpc_sequence_create(engine, &options, &sequence));
    NEED(rrpc_sequence_append_tokens(sequence, PROMPT, PROMPT_LENGTH));
    rrpc_generate_options answer = at_most(41);
    OK(rrpc_generate(sequence, &answer, NULL, NULL, NULL));
    FAILS(BUDGET, "budget", rrpc_sequence_reserve(sequence, 4000));
    rrpc_metrics m = {.struct_size = sizeof m};
    OK(rrpc_engine_get_metrics(engine, &m));
    CHECK(m.sequences_alive == 1 && m.sequences_created == 1);
    CHECK(m.prefill_tokens == PROMPT_LENGTH && m.decode_tokens == 40 && m.steps == 41);
    CHECK(m.compressions == 2 && m.budget_refusals == 1 && m.failed_steps == 0);
    /* 12 of 16, then 12 of 20 candidates, in 3 layers of 2 KV heads. */
    CHECK(m.entries_dropped == (12 + 12) * 6);
    CHECK(m.step_seconds > 0 && m.compaction_seconds > 0);
    CHECK(m.attention_seconds > 0 && m.attention_seconds + m.product_seconds < m.step_seconds);
    CHECK(m.budget_peak_bytes >= m.budget_used_bytes && m.budget_used_bytes > 0);
    size_t count = 0;
    OK(rrpc_engine_metrics_text(engine, NULL, 0, &count));
    char *text = calloc(count + 1, 1);
    FAILS(BUFFER_TOO_SMALL, "room", rrpc_engine_metrics_text(engine, text, count - 1, &count));
    OK(rrpc_engine_metrics_text(engine, text, count, &count));
#define SAME(name, field) CHECK(in_text(text, name) == (double)m.field)
    SAME("sequences", sequences_alive);
    SAME("sequences_created_total", sequences_created);
    SAME("steps_total", steps);
    SAME("prefill_tokens_total", prefill_tokens);
    SAME("decode_tokens_total", decode_tokens);
    SAME("compressions_total", compressions);
    SAME("entries_dropped_total", entries_dropped);
    SAME("budget_refusals_total", budget_refusals);
    SAME("failed_steps_total", failed_steps);
    SAME("step_seconds_total", step_seconds);
    SAME("compaction_seconds_total", compaction_seconds);
    SAME("attention_seconds_total", attention_seconds);
    SAME("product_seconds_total", product_seconds);
    SAME("budget_bytes", budget_bytes);
    SAME("budget_used_bytes", budget_used_bytes);
    SAME("budget_promised_bytes", budget_promised_bytes);
    SAME("budget_peak_bytes", budget_peak_bytes);
    free(text);
    rrpc_sequence_free(sequence);
    OK(rrpc_engine_get_metrics(engine, &m));
    CHECK(m.sequences_alive == 0 && m.budget_used_bytes == 0);

    uint64_t bytes = 0;
    OK(rrpc_engine_trim(engine, &bytes));
    CHECK(bytes > 0 && bytes % 4096 == 0);
    OK(rrpc_engine_trim(engine, &bytes));
    CHECK(bytes == 0);
    OK(rrpc_engine_trim(engine, NULL));
    FAILS(NULL_POINTER, "engine", rrpc_engine_trim(NULL, &bytes));
    FAILS(INVALID_HANDLE, "engine", rrpc_engine_trim((rrpc_engine *)(void *)&m, &bytes));
}

int main(void)
{
    rrpc_engine_options options;
    NEED(rrpc_engine_options_init(&options, sizeof options));
    options.threads = 1;
    options.block_entries = 16;
    options.budget_bytes = 1 << 17;
    NEED(rrpc_engine_open(MODEL, &options, &engine));
    RUN(figures_are_those_of_the_work);
    rrpc_engine_free(engine);
    return check_end("metrics");
}
