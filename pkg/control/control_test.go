package control_test

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/slash32/slash32/pkg/control"
)

// socketPath is short: a socket's path has at most 107 bytes.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "s32")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "s")
}

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serve answers with handle until the test ends.
func serve(t *testing.T, handle func(context.Context, control.Request) control.Reply) string {
	t.Helper()
	path := socketPath(t)
	l := listen(t, path)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- control.Serve(ctx, l, handle) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		goleak.VerifyNone(t)
	})
	return path
}

func echo(_ context.Context, r control.Request) control.Reply {
	return control.Reply{XML: r.Op + " " + r.VM}
}

func TestCall(t *testing.T) {
	path := serve(t, echo)
	for range 3 {
		got, err := control.Call(context.Background(), path, control.Request{Op: "show", VM: "web1"})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(control.Reply{XML: "show web1"}, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestCallOfManyVMs(t *testing.T) {
	want := control.Reply{Status: &control.Status{VMs: make([]control.VM, 5000)}}
	for i := range want.Status.VMs {
		want.Status.VMs[i].Objects = strings.Repeat("x", 1000)
	}
	path := serve(t, func(context.Context, control.Request) control.Reply { return want })
	got, err := control.Call(context.Background(), path, control.Request{Op: "status"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestNobodyListens(t *testing.T) {
	stale := socketPath(t)
	l := listen(t, stale)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"absent": stale + "no", "stale": stale} {
		t.Run(name, func(t *testing.T) {
			_, callErr := control.Call(context.Background(), path, control.Request{Op: "status"})
			_, queryErr := control.QueryResponder(context.Background(), path)
			for _, err := range []error{callErr, queryErr, control.Poke(path, "")} {
				if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "nothing listens on "+path) {
					t.Errorf("got %v", err)
				}
			}
		})
	}
}

// silent accepts and never answers.
func silent(t *testing.T) string {
	t.Helper()
	path := socketPath(t)
	l := listen(t, path)
	t.Cleanup(func() { _ = l.Close() })
	return path
}

func TestCallEndsWithItsContext(t *testing.T) {
	path := silent(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := control.Call(ctx, path, control.Request{Op: "status"})
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := control.Call(ctx, path, control.Request{Op: "status"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestPokeDoesNotWaitForAHungAgent(t *testing.T) {
	if err := control.Poke(silent(t), "web1"); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestPokeArrives(t *testing.T) {
	got := make(chan control.Request, 1)
	path := serve(t, func(_ context.Context, r control.Request) control.Reply {
		got <- r
		return control.Reply{}
	})
	if err := control.Poke(path, "web1"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(control.Request{Op: "poke", VM: "web1"}, <-got); diff != "" {
		t.Error(diff)
	}
}

// talk sends raw bytes and returns the lines that come back until the end.
func talk(t *testing.T, path, text string) []string {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for s := bufio.NewScanner(c); s.Scan(); {
		lines = append(lines, s.Text())
	}
	return lines
}

func TestLines(t *testing.T) {
	path := serve(t, echo)
	for name, c := range map[string]struct {
		in   string
		want []string
	}{
		"two on one connection": {"{\"op\":\"a\"}\n{\"op\":\"b\"}\n", []string{`{"xml":"a "}`, `{"xml":"b "}`}},
		"no newline at the end": {`{"op":"a"}`, []string{`{"xml":"a "}`}},
		"keys of a later build": {"{\"op\":\"a\",\"more\":1}\n", []string{`{"xml":"a "}`}},
		"no op":                 {"{}\n{\"op\":\"b\"}\n", []string{`{"error":"the request has no \"op\"","code":2}`}},
		"nothing":               {"", nil},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, talk(t, path, c.in)); diff != "" {
				t.Error(diff)
			}
		})
	}
	for name, c := range map[string]struct{ in, want string }{
		"not JSON":      {"hello\n", "not one line of JSON"},
		"two in a line": {`{"op":"a"}{"op":"b"}` + "\n", "not one line of JSON"},
		"too long":      {`{"op":"` + strings.Repeat("x", control.MaxRequest) + `"}` + "\n", "longer than 65536 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			lines := talk(t, path, c.in)
			if len(lines) != 1 || !strings.Contains(lines[0], c.want) {
				t.Errorf("got %q", lines)
			}
		})
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	release := make(chan struct{})
	entered := make(chan struct{}, 1000)
	path := serve(t, func(ctx context.Context, r control.Request) control.Reply {
		entered <- struct{}{}
		<-release
		return control.Reply{}
	})
	const limit = 32
	answers := make(chan error, 2*limit)
	for range 2 * limit {
		go func() {
			_, err := control.Call(context.Background(), path, control.Request{Op: "a"})
			answers <- err
		}()
	}
	for range limit {
		<-entered
	}
	select {
	case <-entered:
		t.Error("more than 32 requests are handled at once")
	case <-answers:
		t.Error("an answer came before its handler returned")
	default:
	}
	close(release)
	for range 2 * limit {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
}

func TestServeEndsHandlersWithItsContext(t *testing.T) {
	defer goleak.VerifyNone(t)
	path := socketPath(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	entered := make(chan struct{})
	l := listen(t, path)
	go func() {
		done <- control.Serve(ctx, l, func(ctx context.Context, _ control.Request) control.Reply {
			close(entered)
			<-ctx.Done()
			return control.Reply{}
		})
	}()
	idle, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = idle.Close() }()
	if err := control.Poke(path, ""); err != nil {
		t.Fatal(err)
	}
	<-entered
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// responder answers one line with text.
func responder(t *testing.T, answer map[string]string) string {
	t.Helper()
	path := socketPath(t)
	l := listen(t, path)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			line, _ := bufio.NewReader(c).ReadString('\n')
			_, _ = c.Write([]byte(answer[strings.TrimSpace(line)]))
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return path
}

func TestResponder(t *testing.T) {
	path := responder(t, map[string]string{
		"status": `{"pid":7,"nics":[{"bridge":"web1","verdicts":{"arp_reply":2}}]}` + "\n",
		"reload": `{"error":"binding.json: unexpected end"}` + "\n",
	})
	got, err := control.QueryResponder(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	want := control.Responder{Up: true, PID: 7, NICs: []control.ResponderNIC{{Bridge: "web1", Verdicts: map[string]uint64{"arp_reply": 2}}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := control.ReloadResponder(context.Background(), path); err == nil || !strings.Contains(err.Error(), "refused reload: binding.json: unexpected end") {
		t.Errorf("got %v", err)
	}
}

func TestResponderThatMisbehaves(t *testing.T) {
	for name, c := range map[string]struct{ answer, want string }{
		"silent end": {"", "without an answer"},
		"no JSON":    {"hello\n", "invalid character"},
		"flood":      {strings.Repeat("x", 2*control.MaxResponderReply), "line too long"},
	} {
		t.Run(name, func(t *testing.T) {
			path := responder(t, map[string]string{"status": c.answer})
			if _, err := control.QueryResponder(context.Background(), path); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}
