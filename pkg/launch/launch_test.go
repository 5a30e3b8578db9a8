package launch_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus/hooks/test"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/launch"
)

// TestMain is the responder, too: with a directory as its only argument the
// test binary does as the file "behave" there says.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && !strings.HasPrefix(os.Args[1], "-") {
		if err := respond(os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// report is what the stand-in tells of itself.
type report struct {
	PID     int
	Env     []string
	Dir     string
	Session bool     // it leads a session of its own
	Files   []string // what it has open
}

func respond(dir string) error {
	behave, _ := os.ReadFile(filepath.Join(dir, "behave"))
	files := openFiles()
	switch string(behave) {
	case "die":
		return errors.New("first line\nno such bridge: web1")
	case "no socket":
		// As one that hangs before it has opened its socket.
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		<-term
		return nil
	case "ignore SIGTERM":
		signal.Ignore(syscall.SIGTERM)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "responder.sock"))
	if err != nil {
		return err
	}
	cwd, _ := os.Getwd()
	sid, _ := unix.Getsid(0)
	answer, err := json.Marshal(report{PID: os.Getpid(), Env: os.Environ(), Dir: cwd, Session: sid == os.Getpid(), Files: files})
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if line, _ := bufio.NewReader(c).ReadString('\n'); line == "status\n" {
			_, _ = c.Write(append(answer, '\n'))
		}
		_ = c.Close()
	}
}

func openFiles() []string {
	var files []string
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || slices.ContainsFunc([]string{"/proc/", "/sys/fs/cgroup/", "anon_inode:"}, func(s string) bool { return strings.HasPrefix(target, s) }) {
			continue // the Go runtime's own
		}
		files = append(files, target)
	}
	slices.Sort(files)
	return files
}

// bed is a VM's directory and a launcher.
type bed struct {
	*launch.Launcher
	dir string
}

func newBed(t *testing.T, behave string) bed {
	t.Helper()
	run, err := os.MkdirTemp("", "s32")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(run, "5f3a6f0e-25a1-4d7c-9f3c-0d3b7d3f2a11")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "behave"), []byte(behave), 0o600); err != nil {
		t.Fatal(err)
	}
	b := bed{newLauncher(t), dir}
	t.Cleanup(func() {
		if err := b.Stop(context.Background(), dir); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(run); err != nil {
			t.Error(err)
		}
	})
	return b
}

func newLauncher(t *testing.T) *launch.Launcher {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	log, _ := test.NewNullLogger()
	return launch.New(launch.Process, self, log)
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (b bed) up(t *testing.T) report {
	t.Helper()
	if err := b.Start(within(t), b.dir); err != nil {
		t.Fatal(err)
	}
	if err := b.WaitReady(within(t), b.dir); err != nil {
		t.Fatal(err)
	}
	return b.ask(t)
}

func (b bed) ask(t *testing.T) report {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(b.dir, "responder.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write([]byte("status\n")); err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.NewDecoder(c).Decode(&r); err != nil {
		t.Fatal(err)
	}
	return r
}

// gone waits until the process has ended and been reaped.
func gone(t *testing.T, pid int) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for errors.Is(unix.Kill(pid, 0), nil) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d is still there", pid)
		}
		<-time.After(2 * time.Millisecond)
	}
}

func TestDetached(t *testing.T) {
	// As a hook's pipes: inherited, and open in what the hook starts.
	var pipe [2]int
	if err := unix.Pipe(pipe[:]); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = unix.Close(pipe[0]), unix.Close(pipe[1]) }()
	b := newBed(t, "")
	got := b.up(t)
	want := report{
		PID:     got.PID,
		Env:     []string{"GOMAXPROCS=1", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
		Dir:     "/",
		Session: true,
		Files: []string{
			"/dev/null", filepath.Join(b.dir, "responder.lock"), filepath.Join(b.dir, "responder.log"), filepath.Join(b.dir, "responder.log"),
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// The responder has what it needs until it drops all, and nothing can come back by
// an execve. The starter keeps its own.
func TestBoundingSet(t *testing.T) {
	before := ownStatus(t)
	b := newBed(t, "")
	if err := b.Start(within(t), b.dir); err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.up(t).PID))
	if err != nil {
		t.Fatal(err)
	}
	const need = 1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID | 1<<unix.CAP_NET_RAW
	want := []string{
		fmt.Sprintf("CapInh:\t%016x", need), fmt.Sprintf("CapPrm:\t%016x", need), fmt.Sprintf("CapEff:\t%016x", need),
		fmt.Sprintf("CapBnd:\t%016x", 0), fmt.Sprintf("CapAmb:\t%016x", 0), "NoNewPrivs:\t1",
	}
	if diff := cmp.Diff(want, privileges(status)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(before, ownStatus(t)); diff != "" {
		t.Errorf("the starter's own sets changed, too: %s", diff)
	}
}

func ownStatus(t *testing.T) []string {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	return privileges(status)
}

// privileges are the lines on them in a status file of /proc.
func privileges(status []byte) []string {
	return slices.DeleteFunc(strings.Split(string(status), "\n"), func(line string) bool {
		return !strings.HasPrefix(line, "Cap") && !strings.HasPrefix(line, "NoNewPrivs:")
	})
}

func TestStartIsIdempotent(t *testing.T) {
	b := newBed(t, "")
	first := b.up(t)
	if again := b.up(t); again.PID != first.PID {
		t.Errorf("process %d, then %d", first.PID, again.PID)
	}
}

func TestStartsAtOnceMakeOne(t *testing.T) {
	b := newBed(t, "")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			l := newLauncher(t)
			if err := errors.Join(l.Start(within(t), b.dir), l.WaitReady(within(t), b.dir)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	pid := b.ask(t).PID
	if err := b.Stop(within(t), b.dir); err != nil {
		t.Fatal(err)
	}
	gone(t, pid)
	if err := b.WaitReady(canceled(), b.dir); err == nil {
		t.Error("another one answers")
	}
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func TestStop(t *testing.T) {
	for _, behave := range []string{"", "ignore SIGTERM"} {
		t.Run(behave, func(t *testing.T) {
			b := newBed(t, behave)
			pid := b.up(t).PID
			other := bed{newLauncher(t), b.dir} // as another program would
			if err := other.Stop(within(t), b.dir); err != nil {
				t.Fatal(err)
			}
			gone(t, pid)
			if _, err := os.Lstat(filepath.Join(b.dir, "responder.sock")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the socket is still there: %v", err)
			}
			if err := other.Stop(within(t), b.dir); err != nil {
				t.Errorf("stop it again: %v", err)
			}
			if again := b.up(t).PID; again == pid {
				t.Error("the same process answers again")
			}
		})
	}
}

func TestStopBeforeItHasASocket(t *testing.T) {
	b := newBed(t, "no socket")
	if err := b.Start(within(t), b.dir); err != nil {
		t.Fatal(err)
	}
	ended, err := b.Watch(within(t), b.dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := newLauncher(t).Stop(within(t), b.dir); err != nil {
		t.Fatal(err)
	}
	<-ended
}

// A responder whose directory was wiped is found by its command line; the one
// that was started since is left alone.
func TestEndStrays(t *testing.T) {
	b := newBed(t, "")
	if err := b.Start(within(t), b.dir); err != nil {
		t.Fatal(err)
	}
	stray := b.up(t).PID
	if err := b.EndStrays(within(t), b.dir); err != nil {
		t.Fatal(err)
	}
	if now := b.ask(t).PID; now != stray {
		t.Fatalf("the only one was ended: %d, then %d", stray, now)
	}
	for _, name := range []string{"responder.sock", "responder.lock"} {
		if err := os.Remove(filepath.Join(b.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	next := bed{newLauncher(t), b.dir}
	if err := next.Start(within(t), b.dir); err != nil {
		t.Fatal(err)
	}
	pid := next.up(t).PID
	if pid == stray {
		t.Fatal("no second one was started")
	}
	if err := next.EndStrays(within(t), b.dir); err != nil {
		t.Fatal(err)
	}
	gone(t, stray)
	if now := next.ask(t).PID; now != pid {
		t.Errorf("the right one was ended: %d, then %d", pid, now)
	}
}

func TestDiesEarly(t *testing.T) {
	b := newBed(t, "die")
	if err := b.Start(within(t), b.dir); err != nil {
		t.Fatal(err)
	}
	err := b.WaitReady(within(t), b.dir)
	if want := "the responder ended before it was ready (exit status 1): no such bridge: web1"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestNotReadyInTime(t *testing.T) {
	b := newBed(t, "no socket")
	if err := b.Start(within(t), b.dir); err != nil {
		t.Fatal(err)
	}
	if err := b.WaitReady(canceled(), b.dir); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestWatch(t *testing.T) {
	b := newBed(t, "")
	pid := b.up(t).PID
	mine, err := b.Watch(within(t), b.dir)
	if err != nil {
		t.Fatal(err)
	}
	others, err := newLauncher(t).Watch(within(t), b.dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	left, err := b.Watch(ctx, b.dir)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case <-mine:
		t.Fatal("it has not ended")
	default:
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-mine
	<-others
	gone(t, pid)
	select {
	case <-left:
		t.Error("a channel was closed after its context's end")
	default:
	}
	if again := b.up(t).PID; again == pid {
		t.Error("the same process answers again")
	}
}

func TestWatchNobody(t *testing.T) {
	b := newBed(t, "")
	if _, err := b.Watch(within(t), b.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestLogIsBounded(t *testing.T) {
	b := newBed(t, "")
	path := filepath.Join(b.dir, "responder.log")
	for _, c := range []struct{ had, want int }{{1 << 20, 1 << 20}, {1<<20 + 1, 0}} {
		if err := os.WriteFile(path, make([]byte, c.had), 0o600); err != nil {
			t.Fatal(err)
		}
		b.up(t)
		if err := b.Stop(within(t), b.dir); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Size() != int64(c.want) {
			t.Errorf("a log of %d bytes has %d after a start, want %d", c.had, st.Size(), c.want)
		}
	}
}

func TestRefusals(t *testing.T) {
	log, _ := test.NewNullLogger()
	b := newBed(t, "")
	for name, c := range map[string]struct {
		mode, dir, want string
	}{
		"no UUID": {launch.Process, "/run/slash32/vm/web1", "not a UUID"},
		"mode":    {"docker", b.dir, `no mode "docker"`},
		"no unit": {launch.Systemd, b.dir, "not by systemd"},
		"binary":  {launch.Process, b.dir, "run the responder"},
	} {
		t.Run(name, func(t *testing.T) {
			err := launch.New(c.mode, "/nonexistent/slash32-responder", log).Start(within(t), c.dir)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestAutoFallsBackToAProcess(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	log, _ := test.NewNullLogger()
	b := newBed(t, "") // its directory is not below /run/slash32/vm
	b.Launcher = launch.New(launch.Auto, self, log)
	b.up(t)
}
