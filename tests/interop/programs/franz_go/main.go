// Reads partitions with franz-go: `franz_go ORDER`, see ../../gaps.py for the order and the answer.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

type order struct {
	Bootstrap string           `json:"bootstrap"`
	Topic     string           `json:"topic"`
	Starts    map[string]int64 `json:"starts"`
	MaxBytes  int32            `json:"max_bytes"`
}

func read(ctx context.Context, order order) error {
	starts := make(map[int32]kgo.Offset)
	for name, offset := range order.Starts {
		partition, err := strconv.ParseInt(name, 10, 32)
		if err != nil {
			return err
		}
		starts[int32(partition)] = kgo.NewOffset().At(offset)
	}
	client, err := kgo.NewClient(
		kgo.SeedBrokers(order.Bootstrap),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{order.Topic: starts}),
		kgo.FetchMaxPartitionBytes(order.MaxBytes),
		kgo.FetchMaxWait(200*time.Millisecond),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	)
	if err != nil {
		return err
	}
	defer client.Close()
	out := json.NewEncoder(os.Stdout)
	for ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		for _, failed := range fetches.Errors() {
			if ctx.Err() == nil {
				return fmt.Errorf("partition %d: %w", failed.Partition, failed.Err)
			}
		}
		for _, record := range fetches.Records() {
			told := []any{record.Partition, record.Offset, string(record.Key), len(record.Value)}
			if err := out.Encode(told); err != nil {
				return err
			}
		}
	}
	return nil
}

func main() {
	var order order
	if err := json.Unmarshal([]byte(os.Args[1]), &order); err != nil {
		panic(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	if err := read(ctx, order); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
