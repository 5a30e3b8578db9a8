package reconcile_test

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/test/wait"
)

// TestCulprit: who keeps changing the table is named, once a minute, as the kernel has
// said who it was.
func TestCulprit(t *testing.T) {
	b := newBed(t)
	ctx, cancel := context.WithCancel(context.Background())
	watched := make(chan error, 1)
	seen := make(chan struct{}, 64)
	go func() {
		watched <- b.kernel.Watch(ctx, func(reason string) {
			b.loop.Poke("kernel: "+reason, false)
			select {
			case seen <- struct{}{}:
			default:
			}
		})
	}()
	defer func() {
		cancel()
		if err := <-watched; err != nil {
			t.Error(err)
		}
	}()
	<-seen // it watches
	b.run(1, annotated(`ipv4="10.42.0.7"`))
	b.pass()
	var fights []int
	for range 8 {
		cmd := exec.Command("nft", "delete", "table", "inet", "slash32")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
		wait.For(t, 10*time.Second, "the table", func() bool {
			out, err := b.try("nft list set inet slash32 guard4")
			return err == nil && strings.Contains(out, "10.42.0.7")
		})
		fights = append(fights, cmd.Process.Pid)
	}
	b.pass()
	log := b.log.String()
	if n := strings.Count(log, "keeps changing what slash32 set up"); n != 1 {
		t.Errorf("the line is there %d times", n)
	}
	if !slices.ContainsFunc(fights, func(pid int) bool {
		return strings.Contains(log, fmt.Sprintf(`\"nft\" (last as process %d) keeps changing`, pid))
	}) {
		t.Errorf("none of the processes %d of nft is named", fights)
	}
}

// TestNeighbours: what else keeps guests offline is in status, and once in the log.
func TestNeighbours(t *testing.T) {
	b := newBed(t)
	p := problem.Problem{Code: problem.WDocker, What: "Docker: dropped", Fix: "write manage"}
	b.mu.Lock()
	b.neighbours = problem.List{p}
	b.mu.Unlock()
	b.pass()
	b.pass()
	if s := b.loop.Status(); !slices.Contains(s.Warnings, p.String()) {
		t.Errorf("warnings %q", s.Warnings)
	}
	if n := strings.Count(b.log.String(), p.String()); n != 1 {
		t.Errorf("the log has it %d times", n)
	}
	b.mu.Lock()
	b.neighbours = nil
	b.mu.Unlock()
	b.pass()
	if s := b.loop.Status(); len(s.Warnings) != 0 {
		t.Errorf("warnings %q", s.Warnings)
	}
}
