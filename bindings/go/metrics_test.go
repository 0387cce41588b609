package reasoningrpc

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestMetrics(t *testing.T) {
	expected := readGolden(t)
	engine := openEngine(t, func(o *EngineOptions) { o.BudgetBytes = 1 << 18 })
	s := newSequence(t, engine, expected.Prompt, expected.options("rpc"))
	generate(t, s, 100)
	mustBe(t, s.Reserve(3000), ErrBudget)
	metrics, err := engine.Metrics()
	must(t, err)
	stats, err := s.Stats()
	must(t, err)
	info, err := engine.Info()
	must(t, err)
	log, err := s.Compressions()
	must(t, err)
	dropped := 0
	for _, one := range log {
		dropped += (one.LenBefore - one.LenAfter) * info.KVHeads
	}
	if metrics.SequencesAlive != 1 || metrics.SequencesCreated != 1 || metrics.PrefillTokens != uint64(len(expected.Prompt)) ||
		metrics.DecodeTokens != uint64(stats.DecodeTokens) || metrics.Compressions != uint64(stats.Compressions) ||
		metrics.EntriesDropped != uint64(dropped) || metrics.BudgetRefusals != 1 || metrics.FailedSteps != 0 ||
		metrics.Steps != 100 || metrics.StepTime <= 0 || metrics.CompactionTime <= 0 ||
		metrics.BudgetBytes != info.BudgetBytes || metrics.BudgetUsedBytes != info.BudgetUsedBytes ||
		metrics.BudgetPeakBytes != stats.CachePeakBytes || metrics.BudgetPromisedBytes != 0 {
		t.Errorf("%+v\n%+v\n%d dropped", metrics, stats, dropped)
	}
	var text bytes.Buffer
	must(t, engine.WriteMetrics(&text))
	for line := range strings.Lines(text.String()) {
		if fields := strings.Fields(line); len(fields) < 2 || !strings.HasSuffix(line, "\n") ||
			(fields[0] != "#" && (len(fields) != 2 || !strings.HasPrefix(fields[0], "reasoning_rpc_"))) {
			t.Errorf("%q", line)
		}
	}
	if line := fmt.Sprintf("\nreasoning_rpc_decode_tokens_total %d\n", stats.DecodeTokens); !strings.Contains(text.String(), line) {
		t.Errorf("no %q in %s", line, text.String())
	}
	must(t, s.Close())
	metrics, err = engine.Metrics()
	if must(t, err); metrics.SequencesAlive != 0 || metrics.BudgetUsedBytes != 0 || metrics.BudgetPromisedBytes != 0 {
		t.Errorf("%+v", metrics)
	}
	if bytes, err := engine.Trim(); err != nil || bytes == 0 || bytes%4096 != 0 {
		t.Errorf("%d bytes were given back, %v", bytes, err)
	}
	if bytes, err := engine.Trim(); err != nil || bytes != 0 {
		t.Errorf("%d bytes were given back again, %v", bytes, err)
	}
	reader, writer := io.Pipe()
	must(t, reader.CloseWithError(io.ErrNoProgress))
	mustBe(t, engine.WriteMetrics(writer), io.ErrNoProgress)
	must(t, engine.Close())
	mustBe(t, engine.WriteMetrics(writer), ErrInvalidHandle)
	_, err = engine.Trim()
	mustBe(t, err, ErrInvalidHandle)
}
