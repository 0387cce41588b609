package reasoningrpc

// #include "shim.h"
import "C"

import (
	"runtime"
	"unsafe"
)

// Save is the sequence as bytes, for [Engine.Restore] of this or another process: text, cache, policy, log
// and sampler. They fit every engine with the same model and CacheDType.
//
// Errors: [ErrBusy], [ErrPoisoned].
func (s *Sequence) Save() ([]byte, error) {
	return fill(0, func(out *byte, capacity C.size_t, count *C.size_t) error {
		return s.use(func() *C.rrpc_error {
			return C.go_sequence_save(s.handle, unsafe.Pointer(out), capacity, count)
		})
	})
}

// SaveFile saves the sequence to a file, which is there whole or not at all.
//
// Errors: [ErrBusy], [ErrPoisoned]; [ErrFile] if it cannot be written; [ErrInvalidArgument] for a path that
// is empty or has a NUL.
func (s *Sequence) SaveFile(path string) error {
	if err := checkPath(path); err != nil {
		return err
	}
	var memory copies
	defer func() { memory.free() }()
	name := memory.text(path).data
	return s.use(func() *C.rrpc_error { return C.go_sequence_save_file(s.handle, name) })
}

// Restore makes a sequence from what [Sequence.Save] returned: it continues with exactly the tokens that
// the saved one continues with. The bytes may be from anywhere: they are checked. The caller closes the
// sequence.
//
// Errors: [ErrState] if they are damaged, of another version, or of another model; [ErrBudget].
func (e *Engine) Restore(data []byte) (*Sequence, error) {
	defer runtime.KeepAlive(e)
	bytes := unsafe.Pointer(unsafe.SliceData(data))
	if len(data) == 0 {
		bytes = unsafe.Pointer(new(byte))
	}
	return ownSequence(nil, func(handle *C.go_sequence) error {
		return check(C.go_sequence_restore(e.handle, bytes, C.size_t(len(data)), handle))
	})
}

// RestoreFile makes a sequence from a file that [Sequence.SaveFile] wrote.
//
// Errors: those of [Engine.Restore]; [ErrFile] if the file cannot be read; [ErrInvalidArgument] for a path
// that is empty or has a NUL.
func (e *Engine) RestoreFile(path string) (*Sequence, error) {
	defer runtime.KeepAlive(e)
	if err := checkPath(path); err != nil {
		return nil, err
	}
	var memory copies
	defer func() { memory.free() }()
	name := memory.text(path).data
	return ownSequence(nil, func(handle *C.go_sequence) error {
		return check(C.go_sequence_restore_file(e.handle, name, handle))
	})
}
