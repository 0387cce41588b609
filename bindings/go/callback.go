package reasoningrpc

// #include "shim.h"
import "C"

import "runtime/cgo"

//export reasoning_rpc_go_event
func reasoning_rpc_go_event(event *C.rrpc_event, handle C.uintptr_t) C.int32_t {
	answer := cgo.Handle(handle).Value().(*answer)
	goOn := answer.pass(Event{
		Kind:         EventKind(event.kind),
		Text:         C.GoStringN(event.text, C.int(event.text_len)),
		Token:        uint32(event.token),
		EndOfText:    event.end_of_text != 0,
		PrefillDone:  int(event.prefill_done),
		PrefillTotal: int(event.prefill_total),
		StopReason:   StopReason(event.stop_reason),
	})
	if goOn {
		return 0
	}
	return 1
}
