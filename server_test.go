package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A user's file may ask for a command that nobody has defined: neither check
// nor the daemon's start lets that pass, and both name file and line.
func TestUndefinedCommandsStopTheStart(t *testing.T) {
	dir := t.TempDir()
	users := filepath.Join(dir, "users.d")
	if err := os.MkdirAll(users, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(users, "ann.toml")
	if err := os.WriteFile(file, []byte("sessions = 3\ncommands = [\"snap\"]\non_upload = \"thumb\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := defaultConfig()
	cfg.Server.StateDir, cfg.Server.UsersDir = dir, users
	_, err := newServer(cfg, slog.New(slog.DiscardHandler), new(slog.LevelVar), false)
	want := []string{
		file + `:2: commands: there is no command "snap"; define it as [commands.NAME] in the configuration`,
		file + `:3: on_upload: there is no command "thumb"; define it as [commands.NAME] in the configuration`,
	}
	if err == nil || err.Error() != strings.Join(want, "\n") {
		t.Fatalf("newServer: %v; want\n%s", err, strings.Join(want, "\n"))
	}
	cfg.Commands = map[string]commandConfig{"snap": {}, "thumb": {}}
	if _, err := newServer(cfg, slog.New(slog.DiscardHandler), new(slog.LevelVar), false); err != nil {
		t.Fatalf("newServer with both commands defined: %v", err)
	}
}

// A share on a disk that is not there does not keep the user out.
func TestMissingShareIsLeftOut(t *testing.T) {
	dir := t.TempDir()
	there := filepath.Join(dir, "there")
	if err := os.Mkdir(there, 0o700); err != nil {
		t.Fatal(err)
	}
	js := newJailSet(nil)
	j, err := js.enter(jailSpec{user: "ann", home: filepath.Join(dir, "home"), shares: map[string]shareSpec{"a": {path: there}, "b": {path: filepath.Join(dir, "gone")}}})
	if err != nil {
		t.Fatal(err)
	}
	defer js.leave(j)
	if err := j.isDir("/a"); err != nil {
		t.Errorf("the share that is there: %v", err)
	}
	if err := j.isDir("/b"); err == nil || len(j.missing) != 1 {
		t.Errorf("the share that is not: isDir %v, missing %v", err, j.missing)
	}
}

// A demo's second run has the password of the first, in a file that nobody else reads.
func TestDemoKeepsItsPassword(t *testing.T) {
	d := demo{dir: t.TempDir()}
	state := filepath.Join(d.dir, demoState)
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	first, err := d.password()
	if err != nil || len(first) < 16 {
		t.Fatalf("password() = %q, %v", first, err)
	}
	if again, err := d.password(); again != first || err != nil {
		t.Errorf("the second run: %q, %v; want %q", again, err, first)
	}
	if st, err := os.Stat(filepath.Join(state, "password")); err != nil || st.Mode() != 0o600 {
		t.Errorf("the file: %v, %v; want mode 0600", st.Mode(), err)
	}
}

// The local socket is open to everyone, whatever the umask: the kernel says who
// comes, and one whose uid has no user still needs a password.
func TestLocalSocketIsOpenToAll(t *testing.T) {
	dir := t.TempDir()
	users := filepath.Join(dir, "users.d")
	if err := os.Mkdir(users, 0o700); err != nil {
		t.Fatal(err)
	}
	cfg := defaultConfig()
	cfg.Server.StateDir, cfg.Server.UsersDir = dir, users
	cfg.Listen = listenConfig{Local: []string{filepath.Join(dir, "berth.sock")}, LocalMode: cfg.Listen.LocalMode}
	srv, err := newServer(cfg, slog.New(slog.DiscardHandler), new(slog.LevelVar), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.open(false); err != nil {
		t.Fatal(err)
	}
	defer srv.sockets[0].close()
	if st, err := os.Stat(cfg.Listen.Local[0]); err != nil || st.Mode().Perm() != 0o666 {
		t.Errorf("the socket: %v, %v; want mode 0666", st.Mode(), err)
	}
}
