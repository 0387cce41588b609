package reasoningrpc

// #include "shim.h"
import "C"

import (
	"errors"
	"fmt"
	"runtime/cgo"
	"sync/atomic"
	"unsafe"
)

// SequenceSelectRequest is what SequenceOptions.Select is shown of one layer of a sequence, and where it answers.
type SequenceSelectRequest struct {
	// Layer, from 0.
	Layer int
	// Compressions of the sequence before this one.
	Compressions int
	// Scores of each KV head's candidates, [KVHeads][candidates]: generated entries before the window that were
	// kept so far, from the oldest to the newest. The attention that the window's queries give them, as PolicyRPC
	// has it for each KV head (Softmax says what it is shared out among), not pooled. Read during the call only,
	// and not written.
	Scores [][]float32
	// Positions of the same candidates in the text, from 0 with the given text counted: indices into
	// [Sequence.Tokens]. As Scores.
	Positions [][]uint32
	// Most is how many the KV heads of the layer may keep together: KVHeads times what PolicyRPC would keep.
	// Layers and KV heads may keep less, and KV heads more than others.
	Most int
	// Kept, out: of each KV head the candidates that stay, counted from 0 among its own, ascending. nil keeps
	// none.
	Kept [][]uint32
}

// selector asks a function of the program's. The library has it until the sequence, its forks and their answers have gone.
type selector struct {
	choose func(*SequenceSelectRequest) error
	// The newest error that it returned.
	failed atomic.Pointer[error]
}

// explain adds what the function returned to the error that the library made of it.
func (s *selector) explain(err error) error {
	if s == nil || err == nil || !errors.Is(err, ErrCallback) {
		return err
	}
	if cause := s.failed.Load(); cause != nil {
		return joined(err, *cause)
	}
	return err
}

// answer asks the function and hands its answer over.
func (s *selector) answer(request *C.rrpc_sequence_select_request) (err error) {
	// A panic may not unwind the library, and the thread may be the library's own.
	defer func() {
		if thrown := recover(); thrown != nil {
			err = fmt.Errorf("Select panicked: %v", thrown)
			if cause, ok := thrown.(error); ok {
				err = fmt.Errorf("Select panicked: %w", cause)
			}
		}
	}()
	kvHeads := int(request.kv_heads)
	shown := SequenceSelectRequest{
		Layer:        int(request.layer),
		Compressions: int(request.compressions),
		Scores:       make([][]float32, kvHeads),
		Positions:    make([][]uint32, kvHeads),
		Most:         int(request.most),
	}
	candidates := unsafe.Slice((*uint32)(request.candidates), kvHeads)
	all := 0
	for _, count := range candidates {
		all += int(count)
	}
	scores := unsafe.Slice((*float32)(request.scores), all)
	positions := unsafe.Slice((*uint32)(request.positions), all)
	for head, count := range candidates {
		shown.Scores[head], scores = scores[:count:count], scores[count:]
		shown.Positions[head], positions = positions[:count:count], positions[count:]
	}
	if err := s.choose(&shown); err != nil {
		return err
	}
	if shown.Kept == nil {
		return nil
	}
	if sets := len(shown.Kept); sets != kvHeads {
		return invalid("Select: expected %d kept sets, one of each KV head, found %d", kvHeads, sets)
	}
	room := unsafe.Slice((*uint32)(request.kept), all)
	counts := unsafe.Slice((*uint32)(request.kept_counts), kvHeads)
	for head, set := range shown.Kept {
		if len(set) > int(candidates[head]) {
			return invalid("Select: KV head %d has %d candidates, %d were kept", head, candidates[head], len(set))
		}
		counts[head] = uint32(len(set))
		room = room[copy(room, set):]
	}
	return nil
}

//export reasoning_rpc_go_sequence_select
func reasoning_rpc_go_sequence_select(handle C.uintptr_t, request *C.rrpc_sequence_select_request) C.int32_t {
	s := cgo.Handle(handle).Value().(*selector)
	if err := s.answer(request); err != nil {
		s.failed.Store(&err)
		return 1
	}
	return 0
}

//export reasoning_rpc_go_sequence_release
func reasoning_rpc_go_sequence_release(handle C.uintptr_t) {
	cgo.Handle(handle).Delete()
}
