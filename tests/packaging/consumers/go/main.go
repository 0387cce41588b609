// The consumer in Go. Usage: program MODEL_FOLDER. Prints the tokens of a greedy answer.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	reasoningrpc "github.com/reasoning-rpc/reasoning-rpc/bindings/go"
)

func main() {
	engine, err := reasoningrpc.Open(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer engine.Close()
	sequence, err := engine.NewSequence(func(o *reasoningrpc.SequenceOptions) {
		o.Temperature, o.RepetitionPenalty = 0, 1
	})
	if err != nil {
		log.Fatal(err)
	}
	defer sequence.Close()
	if err := sequence.AppendTokens(63, 43, 49, 70, 31, 87, 29, 75, 15, 9, 13, 8); err != nil {
		log.Fatal(err)
	}
	fmt.Print("tokens:")
	for event, err := range sequence.Generate(context.Background(), func(o *reasoningrpc.GenerateOptions) {
		o.MaxTokens = 8
	}) {
		if err != nil {
			log.Fatal(err)
		}
		if event.Kind == reasoningrpc.EventToken {
			fmt.Print(" ", event.Token)
		}
	}
	fmt.Println()
}
