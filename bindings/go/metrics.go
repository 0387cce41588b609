package reasoningrpc

// #include "shim.h"
import "C"

import (
	"io"
	"runtime"
	"time"
	"unsafe"
)

// Metrics are figures of an engine since it was opened, over all its sequences, those that were closed
// included. Each is exact; they are not all of one moment while steps run.
type Metrics struct {
	// SequencesAlive now.
	SequencesAlive uint64
	// SequencesCreated so far, forks and restored ones included.
	SequencesCreated uint64
	// Steps that the model has run.
	Steps uint64
	// PrefillTokens are the given tokens that steps have run.
	PrefillTokens uint64
	// DecodeTokens are the generated tokens that steps have run.
	DecodeTokens uint64
	// Compressions of a sequence, all layers at once.
	Compressions uint64
	// EntriesDropped by compressions: one token of one KV head of one layer each.
	EntriesDropped uint64
	// BudgetRefusals are the requests for cache that did not fit the budget.
	BudgetRefusals uint64
	// FailedSteps of the model.
	FailedSteps uint64
	// StepTime of all steps, compressions not included.
	StepTime time.Duration
	// CompactionTime of all compressions.
	CompactionTime time.Duration
	// BudgetBytes in whole blocks.
	BudgetBytes uint64
	// BudgetUsedBytes is what caches hold now.
	BudgetUsedBytes uint64
	// BudgetPromisedBytes are promised to sequences and not held yet.
	BudgetPromisedBytes uint64
	// BudgetPeakBytes is the most that caches held at any moment.
	BudgetPeakBytes uint64
	// AttentionTime is the part of StepTime inside attention nodes; 0 in portable graphs.
	AttentionTime time.Duration
	// ProductTime is the part of StepTime inside products with quantised matrices; 0 where ONNX Runtime multiplies.
	ProductTime time.Duration
}

// Metrics reads the figures of the engine.
func (e *Engine) Metrics() (Metrics, error) {
	defer runtime.KeepAlive(e)
	found := C.rrpc_metrics{struct_size: C.sizeof_rrpc_metrics}
	if err := check(C.go_engine_get_metrics(e.handle, &found)); err != nil {
		return Metrics{}, err
	}
	return Metrics{
		SequencesAlive:      uint64(found.sequences_alive),
		SequencesCreated:    uint64(found.sequences_created),
		Steps:               uint64(found.steps),
		PrefillTokens:       uint64(found.prefill_tokens),
		DecodeTokens:        uint64(found.decode_tokens),
		Compressions:        uint64(found.compressions),
		EntriesDropped:      uint64(found.entries_dropped),
		BudgetRefusals:      uint64(found.budget_refusals),
		FailedSteps:         uint64(found.failed_steps),
		StepTime:            duration(found.step_seconds),
		CompactionTime:      duration(found.compaction_seconds),
		BudgetBytes:         uint64(found.budget_bytes),
		BudgetUsedBytes:     uint64(found.budget_used_bytes),
		BudgetPromisedBytes: uint64(found.budget_promised_bytes),
		BudgetPeakBytes:     uint64(found.budget_peak_bytes),
		AttentionTime:       duration(found.attention_seconds),
		ProductTime:         duration(found.product_seconds),
	}, nil
}

// MetricsContentType is the media type of what [Engine.WriteMetrics] writes.
const MetricsContentType = "text/plain; version=0.0.4; charset=utf-8"

// WriteMetrics writes the figures of the engine in the text format that Prometheus reads. Names
// begin with reasoning_rpc_.
//
// Errors: those of the writer.
func (e *Engine) WriteMetrics(w io.Writer) error {
	defer runtime.KeepAlive(e)
	text, err := fill(8192, func(out *byte, capacity C.size_t, count *C.size_t) error {
		return check(C.go_engine_metrics_text(e.handle, (*C.char)(unsafe.Pointer(out)), capacity, count))
	})
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}
