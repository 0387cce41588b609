package reasoningrpc

// #include "shim.h"
import "C"

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
)

var (
	logger atomic.Pointer[slog.Logger]
	// Held by SetLogger; only tried, so that a handler that calls it is refused and does not wait for
	// itself.
	settingLogger sync.Mutex
)

// SetLogger makes the library log to logger what is at least as severe as level; it is silent until then,
// and again with a nil logger. There is one for the process. Messages come from any goroutine that calls
// the library, and from threads of its own; Handlers may call the library. When SetLogger returns, the
// logger before it is no longer in use.
//
// Errors: [ErrBusy] from within a handler, and while another SetLogger is under way.
func SetLogger(to *slog.Logger, level slog.Level) error {
	if !settingLogger.TryLock() {
		return &Error{ErrBusy, "another call is setting the logger"}
	}
	defer settingLogger.Unlock()
	chosen := C.uint32_t(C.RRPC_LOG_OFF)
	switch {
	case to == nil:
	case level <= slog.LevelDebug:
		chosen = C.RRPC_LOG_DEBUG
	case level <= slog.LevelInfo:
		chosen = C.RRPC_LOG_INFO
	case level <= slog.LevelWarn:
		chosen = C.RRPC_LOG_WARNING
	case level <= slog.LevelError:
		chosen = C.RRPC_LOG_ERROR
	}
	before := logger.Swap(to)
	err := check(C.go_set_log(chosen))
	if err != nil {
		logger.Store(before)
	}
	return err
}

//export reasoning_rpc_go_log
func reasoning_rpc_go_log(level C.uint32_t, message *C.char, length C.size_t) {
	// A panic may not unwind the library. It ends the program all the same.
	defer func() {
		if thrown := recover(); thrown != nil {
			go panic(thrown)
		}
	}()
	to := logger.Load()
	if to == nil {
		return
	}
	severity := slog.LevelDebug
	switch level {
	case C.RRPC_LOG_ERROR:
		severity = slog.LevelError
	case C.RRPC_LOG_WARNING:
		severity = slog.LevelWarn
	case C.RRPC_LOG_INFO:
		severity = slog.LevelInfo
	}
	to.Log(context.Background(), severity, C.GoStringN(message, C.int(length)))
}
