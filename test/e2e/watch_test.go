package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/slash32/slash32/test/lab"
)

// recording is the output of a program that runs until the test's end.
type recording struct {
	node *lab.Node
	path string
	proc *lab.Process
}

func record(t *testing.T, node *lab.Node, args ...string) *recording {
	t.Helper()
	f, err := os.CreateTemp(node.Path("/var/lib/lab"), args[0]+"-*")
	must(t, err)
	must(t, f.Close())
	r := &recording{node: node, path: "/var/lib/lab/" + filepath.Base(f.Name())}
	proc, err := node.Start(r.path, args...)
	must(t, err)
	r.proc = proc
	t.Cleanup(func() { r.stop(t) })
	return r
}

func (r *recording) stop(t *testing.T) {
	if r.proc == nil {
		return
	}
	if err := r.proc.Signal(syscall.SIGINT); err != nil {
		t.Error(err)
	}
	r.proc = nil
}

func (r *recording) text() string {
	s, err := r.node.ReadFile(r.path)
	if err != nil {
		return err.Error()
	}
	return s
}

// contains is nil when the text has been printed.
func (r *recording) contains(text string) error {
	if all := r.text(); !strings.Contains(all, text) {
		return fmt.Errorf("%q is not in %q", text, all)
	}
	return nil
}

// capture records with tcpdump, from when it returns on.
func capture(ctx context.Context, t *testing.T, node *lab.Node, dev, filter string) *recording {
	t.Helper()
	r := record(t, node, "tcpdump", "-l", "-n", "-i", dev, "--immediate-mode", filter)
	must(t, lab.Wait(ctx, func() error { return r.contains("listening on") }))
	return r
}

// pings is a ping of ten packets a second that counts what is lost.
type pings struct{ *recording }

var sequence = regexp.MustCompile(`bytes from .*icmp_seq=(\d+)`)

// ping starts to ping from the internet and waits for the first answers.
func ping(ctx context.Context, t *testing.T, addr string) pings {
	t.Helper()
	p := pings{record(t, world.Inet, "ping", "-n", "-i", "0.1", addr)}
	p.more(ctx, t)
	return p
}

// count is how many answers came, and how many are missing before the last.
func (p pings) count() (answered, lost int) {
	last := 0 // ping's first is 1
	seen := map[int]bool{}
	for _, m := range sequence.FindAllStringSubmatch(p.text(), -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			continue // the pattern has digits only
		}
		seen[n] = true
		last = max(last, n)
	}
	return len(seen), last - len(seen)
}

// more waits for ten answers more.
func (p pings) more(ctx context.Context, t *testing.T) {
	t.Helper()
	before, _ := p.count()
	must(t, lab.Wait(ctx, func() error {
		if n, _ := p.count(); n < before+10 {
			return fmt.Errorf("%d answers, want %d: %s", n, before+10, p.text())
		}
		return nil
	}))
}
