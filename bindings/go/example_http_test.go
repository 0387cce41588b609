package reasoningrpc_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"

	reasoningrpc "github.com/reasoning-rpc/reasoning-rpc/bindings/go"
)

// service streams answers as server-sent events: a POST of token ids gets the ids of the answer. The answers
// of all clients are written together; a client that leaves, or does not read, holds up nobody else. An
// answer waits until its cache fits the budget; one that never does is refused. Its figures are there for
// Prometheus.
type service struct {
	engine    *reasoningrpc.Engine
	scheduler *reasoningrpc.Scheduler
}

func (s service) metrics(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", reasoningrpc.MetricsContentType)
	if err := errors.Join(s.engine.WriteMetrics(w), s.scheduler.WriteMetrics(w)); err != nil {
		log.Print(err)
	}
}

func (s service) answer(w http.ResponseWriter, r *http.Request) {
	var prompt []uint32
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&prompt); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	sequence, err := s.engine.NewSequence(greedy)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer sequence.Close()
	if err := sequence.AppendTokens(prompt...); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	limit := func(o *reasoningrpc.GenerateOptions) { o.MaxTokens = 4 }
	answer, err := s.scheduler.Submit(r.Context(), sequence, limit)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer answer.Close()
	w.Header().Set("Content-Type", "text/event-stream")
	for event, err := range answer.Events() {
		switch {
		case err != nil:
			// The client has left, or the answer is incomplete: the connection ends without an end event.
			panic(http.ErrAbortHandler)
		case event.Kind == reasoningrpc.EventToken:
			fmt.Fprintf(w, "data: %d\n\n", event.Token)
			http.NewResponseController(w).Flush()
		case event.Kind == reasoningrpc.EventEnd:
			fmt.Fprintf(w, "event: end\ndata: %v\n\n", event.StopReason)
		}
	}
}

// A service that streams answers over HTTP.
func Example_service() {
	engine, err := reasoningrpc.Open(modelFolder(), fp32)
	if err != nil {
		log.Fatal(err)
	}
	defer engine.Close()
	scheduler, err := engine.NewScheduler()
	if err != nil {
		log.Fatal(err)
	}
	defer scheduler.Close()
	service := service{engine, scheduler}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /answer", service.answer)
	mux.HandleFunc("GET /metrics", service.metrics)
	server := httptest.NewServer(mux)
	defer server.Close()

	response, err := http.Post(server.URL+"/answer", "application/json", strings.NewReader("[63, 43, 49, 70, 31, 87, 29, 75, 15, 9, 13, 8]"))
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	stream, err := io.ReadAll(response.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(response.Status, " ", response.Header.Get("Content-Type"), "\n", strings.ReplaceAll(string(stream), "\n\n", "\n"))

	figures, err := http.Get(server.URL + "/metrics")
	if err != nil {
		log.Fatal(err)
	}
	defer figures.Body.Close()
	for lines := bufio.NewScanner(figures.Body); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "reasoning_rpc_decode_tokens") {
			fmt.Println(lines.Text())
		}
	}
	// Output:
	// 200 OK text/event-stream
	// data: 31
	// data: 83
	// data: 67
	// data: 69
	// event: end
	// data: length
	// reasoning_rpc_decode_tokens_total 3
}
