package reasoningrpc

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// textModel is the golden model with a tokenizer of 96 letters, a chat template and a stop token.
func textModel(t *testing.T) string {
	t.Helper()
	python := os.Getenv("PYTHON")
	if python == "" {
		python = "python3"
	}
	model := filepath.Join(t.TempDir(), "model")
	out, err := exec.Command(python, "../../tests/abi/text_model.py", goldenModel(), model).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return model
}

func TestText(t *testing.T) {
	engine, err := Open(textModel(t), f32, func(o *EngineOptions) { o.BudgetBytes = 64 << 20 })
	must(t, err)
	defer engine.Close()
	info, err := engine.Info()
	must(t, err)
	if !info.HasTokenizer || !info.HasChatTemplate || info.Vocab != 96 || info.Context != 4096 ||
		info.Flavour != FlavourCached || info.CacheDType != DTypeF32 || info.SIMD == "" {
		t.Errorf("%+v", info)
	}
	stop, err := engine.StopTokens()
	if must(t, err); !slices.Equal(stop, []uint32{93}) {
		t.Errorf("stop tokens: %v", stop)
	}
	tokens, err := engine.Tokenize("Why? é<|im_end|>", TokenizePrompt)
	must(t, err)
	if tokens[0] != 92 || tokens[len(tokens)-1] != 93 {
		t.Errorf("%v", tokens)
	}
	for skip, expected := range map[bool]string{true: "Why? é", false: "<|bos|>Why? é<|im_end|>"} {
		back, err := engine.Detokenize(tokens, skip)
		if must(t, err); back != expected {
			t.Errorf("%q", back)
		}
	}
	none, err := engine.Tokenize("", TokenizePlain)
	if must(t, err); len(none) != 0 {
		t.Errorf("%v", none)
	}
	empty, err := engine.Detokenize(nil, true)
	if must(t, err); empty != "" {
		t.Errorf("%q", empty)
	}
	_, err = engine.Tokenize("\xff", TokenizePlain)
	mustBe(t, err, ErrInvalidArgument)

	chat := func() *Sequence {
		s, err := engine.NewSequence(greedy)
		must(t, err)
		t.Cleanup(func() { s.Close() })
		must(t, s.AppendChat(Message{"system", ""}, Message{"user", "Why?"}))
		return s
	}
	s := chat()
	var answer strings.Builder
	for event, err := range s.Generate(t.Context(), maxTokens(200)) {
		must(t, err)
		answer.WriteString(event.Text)
	}
	whole := answer.String()
	if len(whole) < 8 {
		t.Fatalf("too short for the tests that follow: %q", whole)
	}

	reader := chat().Reader(t.Context(), maxTokens(200))
	read, err := io.ReadAll(io.MultiReader(io.LimitReader(reader, 1), reader))
	must(t, err)
	if string(read) != whole || reader.StopReason() == 0 {
		t.Errorf("expected %q, found %q (%v)", whole, read, reader.StopReason())
	}
	must(t, reader.Close())

	// Stop strings.
	characters := []rune(whole)
	end := string(characters[4:6])
	before, _, _ := strings.Cut(whole, end)
	reader = chat().Reader(t.Context(), func(o *GenerateOptions) { o.Stop = []string{"never comes", end} })
	read, err = io.ReadAll(reader)
	must(t, err)
	if string(read) != before || reader.StopReason() != StopString {
		t.Errorf("expected %q, found %q (%v)", before, read, reader.StopReason())
	}

	// Reading ends with the context, or with Close, and the sequence is free.
	s = chat()
	ctx, cancel := context.WithCancel(t.Context())
	reader = s.Reader(ctx)
	_, err = reader.Read(make([]byte, 1))
	must(t, err)
	cancel()
	_, err = io.ReadAll(reader)
	mustBe(t, err, context.Canceled)
	must(t, s.AppendText(" More"))
	reader = s.Reader(t.Context())
	_, err = reader.Read(make([]byte, 1))
	must(t, err)
	mustBe(t, s.AppendText("."), ErrBusy)
	must(t, reader.Close())
	must(t, reader.Close())
	_, err = reader.Read(make([]byte, 1))
	mustBe(t, err, io.ErrClosedPipe)
	must(t, s.AppendText("."))
	must(t, s.AppendText(""))
}

// Sequences are closed while their answers are written: the text of the last event is copied whole.
func TestCloseWithinAnswers(t *testing.T) {
	engine, err := Open(textModel(t), f32)
	must(t, err)
	defer engine.Close()
	write := func(close bool) string {
		s, err := engine.NewSequence(greedy)
		must(t, err)
		defer s.Close()
		must(t, s.AppendText("Why?"))
		done := make(chan struct{})
		if close {
			go func() {
				s.Close()
				done <- struct{}{}
			}()
			defer func() { <-done }()
		}
		var answer strings.Builder
		for event, err := range s.Generate(t.Context(), maxTokens(40)) {
			if answer.WriteString(event.Text); err != nil && (!close || !errors.Is(err, ErrInvalidHandle)) {
				t.Fatal(err)
			}
		}
		return answer.String()
	}
	whole := write(false)
	for range 100 {
		if part := write(true); !strings.HasPrefix(whole, part) {
			t.Fatalf("%q is not the beginning of %q", part, whole)
		}
	}
	info, err := engine.Info()
	if must(t, err); info.BudgetUsedBytes != 0 {
		t.Errorf("%d bytes are still in use", info.BudgetUsedBytes)
	}
}
