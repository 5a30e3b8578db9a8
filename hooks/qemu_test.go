// Package hooks_test runs the dispatcher as libvirt would.
package hooks_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// run calls the dispatcher below a libvirtd of that version, with the hooks.
func run(t *testing.T, version string, hooks map[string]string) (stdout, log string, code int) {
	t.Helper()
	dir := t.TempDir()
	write := func(path, text string, mode os.FileMode) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	script, err := os.ReadFile("qemu")
	if err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(dir, "qemu"), string(script), 0o755)
	write(filepath.Join(dir, "bin", "libvirtd"), "#!/bin/sh\necho 'libvirtd (libvirt) "+version+"'\n", 0o755)
	for name, text := range hooks {
		mode := os.FileMode(0o755)
		if name == "not-executable" {
			mode = 0o644
		}
		write(filepath.Join(dir, "qemu.d", name), "#!/bin/sh\n"+text+"\n", mode)
	}
	cmd := exec.Command(filepath.Join(dir, "qemu"), "web1", "prepare", "begin", "-")
	cmd.Env = []string{"PATH=" + filepath.Join(dir, "bin") + ":" + os.Getenv("PATH"), "LOG=" + filepath.Join(dir, "log")}
	cmd.Stdin = bytes.NewReader(bytes.Repeat([]byte("<domain/>\n"), 20000))
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(out), string(b), cmd.ProcessState.ExitCode()
}

func TestDispatcher(t *testing.T) {
	const say = `echo "$(basename "$0") $* $(wc -l)" >>"$LOG"`
	two := map[string]string{"10-first": say, "20-second": say, "not-executable": say}
	both := "10-first web1 prepare begin - 20000\n20-second web1 prepare begin - 20000\n"
	for name, c := range map[string]struct {
		version string
		hooks   map[string]string
		stdout  string
		log     string
		code    int
	}{
		"old":                     {"6.4.0", two, "", both, 0},
		"older":                   {"5.10.0", two, "", both, 0},
		"runs qemu.d itself":      {"6.5.0", two, "", "", 0},
		"newer":                   {"12.0.0", two, "", "", 0},
		"none":                    {"6.0.0", nil, "", "", 0},
		"a failure is passed on":  {"6.0.0", map[string]string{"1": say + "; exit 3", "2": say}, "", "1 web1 prepare begin - 20000\n2 web1 prepare begin - 20000\n", 3},
		"one that does not read":  {"6.0.0", map[string]string{"1": "exit 0", "2": say}, "", "2 web1 prepare begin - 20000\n", 0},
		"what they say is passed": {"6.0.0", map[string]string{"1": "cat >/dev/null; echo hello"}, "hello\n", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, log, code := run(t, c.version, c.hooks)
			if stdout != c.stdout || log != c.log || code != c.code {
				t.Errorf("got %q, log %q, code %d; want %q, log %q, code %d", stdout, log, code, c.stdout, c.log, c.code)
			}
		})
	}
}
