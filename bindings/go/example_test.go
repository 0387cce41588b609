package reasoningrpc_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	reasoningrpc "github.com/reasoning-rpc/reasoning-rpc/bindings/go"
)

// modelFolder is a tiny model that knows token ids only.
func modelFolder() string {
	models := os.Getenv("RRPC_MODELS")
	if models == "" {
		models = "../../models"
	}
	return filepath.Join(models, "golden", "qwen2_p32-cached")
}

func fp32(o *reasoningrpc.EngineOptions) {
	o.CacheDType = reasoningrpc.DTypeF32
}

func greedy(o *reasoningrpc.SequenceOptions) {
	o.Temperature, o.RepetitionPenalty = 0, 1
}

var prompt = []uint32{63, 43, 49, 70, 31, 87, 29, 75, 15, 9, 13, 8}

// An answer, token by token, and what compression did meanwhile.
func Example() {
	engine, err := reasoningrpc.Open(modelFolder(), fp32)
	if err != nil {
		log.Fatal(err)
	}
	defer engine.Close()
	sequence, err := engine.NewSequence(greedy, func(o *reasoningrpc.SequenceOptions) {
		o.Policy, o.Interval, o.Window, o.Ratio = reasoningrpc.PolicyRPC, 32, 8, 4
	})
	if err != nil {
		log.Fatal(err)
	}
	defer sequence.Close()
	if err := sequence.AppendTokens(prompt...); err != nil {
		log.Fatal(err)
	}
	tokens := 0
	for event, err := range sequence.Generate(context.Background(), func(o *reasoningrpc.GenerateOptions) {
		o.MaxTokens = 100
	}) {
		if err != nil {
			log.Fatal(err)
		}
		switch event.Kind {
		case reasoningrpc.EventToken:
			if tokens++; tokens <= 5 {
				fmt.Println("token", event.Token)
			}
		case reasoningrpc.EventEnd:
			fmt.Println("end:", event.StopReason)
		}
	}
	compressions, err := sequence.Compressions()
	if err != nil {
		log.Fatal(err)
	}
	for _, one := range compressions {
		if one.Layer == 0 {
			fmt.Println("at token", one.AtToken, "from", one.LenBefore, "to", one.LenAfter, "entries")
		}
	}
	// Output:
	// token 31
	// token 83
	// token 67
	// token 69
	// token 16
	// end: length
	// at token 40 from 52 to 28 entries
	// at token 72 from 60 to 36 entries
}

// A context ends an answer before its next token.
func ExampleSequence_Generate_cancel() {
	engine, err := reasoningrpc.Open(modelFolder(), fp32)
	if err != nil {
		log.Fatal(err)
	}
	defer engine.Close()
	sequence, err := engine.NewSequence(greedy)
	if err != nil {
		log.Fatal(err)
	}
	defer sequence.Close()
	if err := sequence.AppendTokens(prompt...); err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for event, err := range sequence.Generate(ctx) {
		if errors.Is(err, context.Canceled) {
			fmt.Println("cancelled")
			break
		}
		if err != nil {
			log.Fatal(err)
		}
		if event.Kind == reasoningrpc.EventToken {
			fmt.Println(event.Token)
			if event.Token == 67 {
				cancel()
			}
		}
	}
	// Output:
	// 31
	// 83
	// 67
	// cancelled
}

// A loop of one's own.
func ExampleStep() {
	engine, err := reasoningrpc.Open(modelFolder(), fp32)
	if err != nil {
		log.Fatal(err)
	}
	defer engine.Close()
	sequence, err := engine.NewSequence(greedy)
	if err != nil {
		log.Fatal(err)
	}
	defer sequence.Close()
	if err := sequence.AppendTokens(prompt...); err != nil {
		log.Fatal(err)
	}
	for range 5 {
		if err := reasoningrpc.Step(sequence); err != nil {
			log.Fatal(err)
		}
		token, err := sequence.Sample()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(token)
	}
	// Output:
	// 31
	// 83
	// 67
	// 69
	// 16
}

// Codes tell errors apart.
func ExampleError() {
	engine, err := reasoningrpc.Open(modelFolder(), fp32, func(o *reasoningrpc.EngineOptions) {
		o.BudgetBytes = 1 << 16
	})
	if err != nil {
		log.Fatal(err)
	}
	defer engine.Close()
	sequence, err := engine.NewSequence()
	if err != nil {
		log.Fatal(err)
	}
	defer sequence.Close()
	if err := sequence.AppendTokens(prompt...); err != nil {
		log.Fatal(err)
	}
	err = sequence.Reserve(4000)
	fmt.Println(errors.Is(err, reasoningrpc.ErrBudget))
	// Output: true
}
