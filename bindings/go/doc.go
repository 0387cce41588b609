// Package reasoningrpc writes long answers of language models with a KV cache that is compressed while
// they are written.
//
//	engine, err := reasoningrpc.Open("model-folder")
//	if err != nil { ... }
//	defer engine.Close()
//	sequence, err := engine.NewSequence()
//	if err != nil { ... }
//	defer sequence.Close()
//	err = sequence.AppendChat(reasoningrpc.Message{Role: "user", Content: "Why is the sky blue?"})
//	if err != nil { ... }
//	for event, err := range sequence.Generate(ctx) {
//		if err != nil { ... }
//		fmt.Print(event.Text)
//	}
//
// It is a binding of the C library libreasoning_rpc, which pkg-config finds:
//
//	go build
//
// or, with a library that is not installed,
//
//	PKG_CONFIG=true CGO_CFLAGS=-I.../include CGO_LDFLAGS="-L.../lib -lreasoning_rpc" go build
//
// The dynamic linker must find it as well (LD_LIBRARY_PATH, or -Wl,-rpath in the flags), and the library
// finds ONNX Runtime by the environment variable RRPC_ONNXRUNTIME, by [EngineOptions], or beside itself.
//
// # Options
//
// Functions that take options take functions that change them, so that zero is a value like any other:
// the struct comes filled with the defaults, those of the model's authors among them.
//
//	engine.NewSequence(func(o *reasoningrpc.SequenceOptions) {
//		o.Interval, o.Window, o.Ratio = 128, 32, 4
//		o.Temperature = 0 // greedy
//	})
//
// # Many answers at once
//
// A [Scheduler] writes the answers of many sequences together, which takes less time than one after the
// other, and each is the one that [Sequence.Generate] writes:
//
//	scheduler, err := engine.NewScheduler()
//	if err != nil { ... }
//	defer scheduler.Close()
//	answer, err := scheduler.Submit(ctx, sequence)
//	if err != nil { ... }
//	defer answer.Close()
//	_, err = io.Copy(os.Stdout, answer)
//
// # Several ways to go on
//
// [Sequence.Fork] makes a second sequence that shares the cache of the first: for several answers to one
// text. [Sequence.Rewind] goes back in one. [Sequence.Save] and [Engine.Restore] move one to another
// process.
//
// # Caches of other runtimes
//
// A [Compressor] compresses caches that the program owns, dense or paged, where they lie. It needs no
// engine and no model.
//
// # Ownership
//
// An [Engine], a [Sequence], a [Scheduler], an [Answer] and a [Compressor] hold what Go does not see: Close
// them. One that was
// forgotten is closed some time after it became unreachable. A sequence keeps what it needs of its engine:
// they may be closed in any order. What functions return is Go memory and the caller's; the library keeps
// no pointer to Go memory beyond a call, and what it uses in one is pinned until the call ends.
//
// # Goroutines
//
// Engines, schedulers and compressors are shared: any number of goroutines may use one at the same time. Sequences are
// exclusive: one call at a time uses one, and a second one that comes meanwhile changes nothing and returns
// [ErrBusy]. Close may be called at any time; a call that is under way ends as if it had not been.
// Sequences of one engine advance one step at a time: many of them are fastest with a [Scheduler], or with
// [Step].
//
// # Errors
//
// Errors are of type [*Error], or wrap one; errors.Is tells their codes apart. Each function lists its codes;
// [ErrForked] and [ErrInternal] can come from any, [ErrOutOfMemory] from any that is given or makes
// something large, and after Close every method but Close itself returns [ErrInvalidHandle].
//
// # Watching it
//
// [Engine.Metrics] and [Engine.WriteMetrics] give the figures of an engine, [Scheduler.Metrics] and
// [Scheduler.WriteMetrics] those of a scheduler.
package reasoningrpc

// #cgo pkg-config: reasoning_rpc
// #include "shim.h"
import "C"

// Version is the version of the library that is loaded, such as "0.1.0".
func Version() string {
	return C.GoString(C.rrpc_version())
}
