package reasoningrpc_test

import (
	"fmt"
	"log"
	"math"
	"os"
	"path/filepath"

	reasoningrpc "github.com/reasoning-rpc/reasoning-rpc/bindings/go"
)

// Best of n: the given text is run once, and its cache shared by answers that go different ways together.
func ExampleSequence_Fork() {
	engine, err := reasoningrpc.Open(modelFolder(), fp32)
	if err != nil {
		log.Fatal(err)
	}
	defer engine.Close()
	sequence, err := engine.NewSequence(func(o *reasoningrpc.SequenceOptions) { o.Temperature = 1 })
	if err != nil {
		log.Fatal(err)
	}
	defer sequence.Close()
	if err := sequence.AppendTokens(prompt...); err != nil {
		log.Fatal(err)
	}
	if err := reasoningrpc.Step(sequence); err != nil {
		log.Fatal(err)
	}

	answers := make([]*reasoningrpc.Sequence, 4)
	for i := range answers {
		if answers[i], err = sequence.Fork(); err != nil {
			log.Fatal(err)
		}
		defer answers[i].Close()
		if err := answers[i].SetSeed(uint64(i)); err != nil {
			log.Fatal(err)
		}
	}
	likelihoods := make([]float64, len(answers))
	for range 20 {
		for i, answer := range answers {
			logits, err := answer.Logits()
			if err != nil {
				log.Fatal(err)
			}
			token, err := answer.Sample()
			if err != nil {
				log.Fatal(err)
			}
			likelihoods[i] += logSoftmax(logits, token)
		}
		if err := reasoningrpc.Step(answers...); err != nil {
			log.Fatal(err)
		}
	}
	best := 0
	for i, likelihood := range likelihoods {
		if likelihood > likelihoods[best] {
			best = i
		}
	}
	tokens, err := answers[best].Tokens()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("the likeliest answer of", len(answers), "has", len(tokens)-len(prompt), "tokens")
	// Output: the likeliest answer of 4 has 20 tokens
}

func logSoftmax(logits []float32, token uint32) float64 {
	sum := 0.0
	for _, logit := range logits {
		sum += math.Exp(float64(logit - logits[token]))
	}
	return -math.Log(sum)
}

// What is saved goes on in another process, to the token.
func ExampleEngine_RestoreFile() {
	engine, err := reasoningrpc.Open(modelFolder(), fp32)
	if err != nil {
		log.Fatal(err)
	}
	defer engine.Close()
	sequence, err := engine.NewSequence(greedy)
	if err != nil {
		log.Fatal(err)
	}
	if err := sequence.AppendTokens(prompt...); err != nil {
		log.Fatal(err)
	}
	write := func(sequence *reasoningrpc.Sequence) {
		for range 3 {
			if err := reasoningrpc.Step(sequence); err != nil {
				log.Fatal(err)
			}
			token, err := sequence.Sample()
			if err != nil {
				log.Fatal(err)
			}
			fmt.Println(token)
		}
	}
	write(sequence)

	folder, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, "answer")
	if err := sequence.SaveFile(path); err != nil {
		log.Fatal(err)
	}
	sequence.Close()

	restored, err := engine.RestoreFile(path)
	if err != nil {
		log.Fatal(err)
	}
	defer restored.Close()
	write(restored)
	// Output:
	// 31
	// 83
	// 67
	// 69
	// 16
	// 93
}
