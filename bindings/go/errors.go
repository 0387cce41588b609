package reasoningrpc

// #include "shim.h"
import "C"

import (
	"errors"
	"fmt"
	"strings"
	"unsafe"
)

// Code says what kind of error came up. A Code is an error itself, so that
//
//	errors.Is(err, reasoningrpc.ErrBudget)
//
// tells errors of the library apart. Codes are only ever added.
type Code int32

const (
	// ErrInvalidArgument: an argument or option cannot be used; the message names it, what was expected
	// and what was found.
	ErrInvalidArgument Code = C.RRPC_ERROR_INVALID_ARGUMENT
	// ErrNullPointer: an [Engine], [Sequence], [Scheduler] or [Compressor] is its zero value.
	ErrNullPointer Code = C.RRPC_ERROR_NULL_POINTER
	// ErrInvalidHandle: the engine, sequence, scheduler or compressor was closed.
	ErrInvalidHandle Code = C.RRPC_ERROR_INVALID_HANDLE
	// ErrBusy: another call is using the sequence, or an answer that is under way; or as many answers as may
	// wait for a [Scheduler].
	ErrBusy Code = C.RRPC_ERROR_BUSY
	// ErrBufferTooSmall: a compression needs more spare blocks than it was given; the message says how many.
	ErrBufferTooSmall Code = C.RRPC_ERROR_BUFFER_TOO_SMALL
	// ErrModel: the model folder is missing, damaged, edited, or of another version.
	ErrModel Code = C.RRPC_ERROR_MODEL
	// ErrRuntime: ONNX Runtime is absent, too old, a second one in this process, or it failed.
	ErrRuntime Code = C.RRPC_ERROR_RUNTIME
	// ErrTemplate: the model has no chat template, or it cannot be rendered.
	ErrTemplate Code = C.RRPC_ERROR_TEMPLATE
	// ErrText: text cannot be turned into tokens or back; the model may have no tokenizer.
	ErrText Code = C.RRPC_ERROR_TEXT
	// ErrBudget: the cache would outgrow the engine's budget.
	ErrBudget Code = C.RRPC_ERROR_BUDGET
	// ErrContext: the text would outgrow the model's context. It has nothing to do with package context.
	ErrContext Code = C.RRPC_ERROR_CONTEXT
	// ErrPoisoned: an earlier internal error left the sequence unusable: close it. The engine is well.
	ErrPoisoned Code = C.RRPC_ERROR_POISONED
	// ErrForked: this process was forked from one that had opened an engine.
	ErrForked Code = C.RRPC_ERROR_FORKED
	// ErrOutOfMemory: memory ran out, or too many engines or sequences are open.
	ErrOutOfMemory Code = C.RRPC_ERROR_OUT_OF_MEMORY
	// ErrInternal: a bug in the library. The sequences involved are poisoned.
	ErrInternal Code = C.RRPC_ERROR_INTERNAL
	// ErrState: a saved sequence is damaged, of another version, or of another model.
	ErrState Code = C.RRPC_ERROR_STATE
	// ErrFile: a file cannot be read or written.
	ErrFile Code = C.RRPC_ERROR_FILE
	// ErrCallback: a function of the caller's returned an error, which the error wraps as well.
	ErrCallback Code = C.RRPC_ERROR_CALLBACK
)

var codeNames = map[Code]string{
	ErrInvalidArgument: "invalid argument",
	ErrNullPointer:     "null pointer",
	ErrInvalidHandle:   "closed",
	ErrBusy:            "busy",
	ErrBufferTooSmall:  "buffer too small",
	ErrModel:           "unusable model folder",
	ErrRuntime:         "ONNX Runtime failed",
	ErrTemplate:        "no usable chat template",
	ErrText:            "text cannot be tokenized",
	ErrBudget:          "over the cache budget",
	ErrContext:         "over the model's context",
	ErrPoisoned:        "poisoned by an earlier error",
	ErrForked:          "forked process",
	ErrOutOfMemory:     "out of memory",
	ErrInternal:        "internal error",
	ErrState:           "unusable saved sequence",
	ErrFile:            "unusable file",
	ErrCallback:        "a callback failed",
}

// Error is the code in words.
func (c Code) Error() string {
	name, known := codeNames[c]
	if !known {
		name = fmt.Sprintf("error %d", int32(c))
	}
	return "reasoning-rpc: " + name
}

// Error is what went wrong: a code to act on and a message to read. Every error of this package is an
// *Error or wraps one, but for those of a context, which are returned as its Err says them, and those of
// the io package and of an io.Writer.
type Error struct {
	Code    Code
	Message string
}

// Error is the message.
func (e *Error) Error() string {
	return "reasoning-rpc: " + e.Message
}

// Unwrap is the code, for [errors.Is].
func (e *Error) Unwrap() error {
	return e.Code
}

// invalid is an error about an argument that the library would not see.
func invalid(format string, arguments ...any) error {
	return &Error{ErrInvalidArgument, fmt.Sprintf(format, arguments...)}
}

// check turns an error of the library into one of Go, and frees it.
func check(e *C.rrpc_error) error {
	if e == nil {
		return nil
	}
	defer C.rrpc_error_free(e)
	return &Error{Code(C.rrpc_error_code(e)), C.GoString(C.rrpc_error_message(e))}
}

// fill returns the items that call copies out, however many there are. guess is how many there may be.
func fill[T any](guess int, call func(out *T, capacity C.size_t, count *C.size_t) error) ([]T, error) {
	out := make([]T, guess)
	for {
		var count C.size_t
		err := call(unsafe.SliceData(out), C.size_t(len(out)), &count)
		tooSmall := err == nil || errors.Is(err, ErrBufferTooSmall)
		switch n := int(count); {
		case tooSmall && n > len(out):
			out = make([]T, n)
		case err != nil:
			return nil, err
		default:
			return out[:n:n], nil
		}
	}
}

// text is where a string's bytes are, for a call that reads them before it returns. The library takes no
// NULL, which an empty string's may be.
func text(s string) (*C.char, C.size_t) {
	if s == "" {
		s = "\x00"
		return (*C.char)(unsafe.Pointer(unsafe.StringData(s))), 0
	}
	return (*C.char)(unsafe.Pointer(unsafe.StringData(s))), C.size_t(len(s))
}

// copies are texts in C memory, for structs that point to them.
type copies []unsafe.Pointer

func (c *copies) text(s string) C.rrpc_text {
	data := C.CString(s)
	*c = append(*c, unsafe.Pointer(data))
	return C.rrpc_text{data: data, len: C.size_t(len(s))}
}

// array is room for count items of size bytes.
func (c *copies) array(count int, size C.size_t) unsafe.Pointer {
	data := C.malloc(C.size_t(max(count, 1)) * size)
	*c = append(*c, data)
	return data
}

func (c copies) free() {
	for _, data := range c {
		C.free(data)
	}
}

// checkPath refuses what C would cut short.
func checkPath(path string) error {
	return checkNoNUL("a path", path)
}

// checkNoNUL is checkPath for any text that C takes up to its NUL; expected is what it should be.
func checkNoNUL(expected, text string) error {
	if strings.IndexByte(text, 0) >= 0 {
		return invalid("expected %s, found a NUL character in %q", expected, text)
	}
	return nil
}

func flag(b bool) C.uint32_t {
	if b {
		return 1
	}
	return 0
}
