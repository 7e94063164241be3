// admin.go is the operator's verbs: who, kick, wall, drain and reload, one request
// each to the running daemon through its local socket. It is apart from main.go,
// which runs daemons, and from the client's files, which need a user, a password
// and a certificate: here the kernel vouches for who asks (contract section 3).

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// adminDial is how long the daemon may take to answer the connection: systemd
	// may have to start it first.
	adminDial = 10 * time.Second
	// adminTimeout is how long it may say nothing while it works: a reload reads
	// every user's file.
	adminTimeout = 2 * time.Minute
	// adminGreetings is how many lines of greeting and reply are read at most.
	adminGreetings = 64
)

// adminVerbs is the part of daemonVerbs that talks to a running daemon.
func adminVerbs() []verb {
	return []verb{
		{name: "who", options: []option{configOption, {name: "json", help: "a JSON object a line"}}, run: runWho,
			help: "who is logged in, and what he does",
			examples: []example{
				{"berth who", "a line for each session"},
				{"berth who --json | jq -r .user | sort | uniq -c", "how many sessions each user has"},
			}},
		{name: "kick", args: "ID", min: 1, max: 1, options: []option{configOption}, run: runKick,
			help: "end a session, by its number in who",
			text: "Ends it at once, in the middle of whatever it does. Nothing keeps its user from coming back: see\nberth user set NAME --disabled.",
			examples: []example{
				{"berth kick 17", "ends session 17"},
				{"berth kick 3 --config try/berth.toml", "of the daemon with another configuration"},
			}},
		{name: "wall", args: "TEXT ...", min: 1, max: -1, options: []option{configOption}, run: runWall,
			help: "tell everybody who is there",
			text: "Those who speak frames are told at once; FTP has no words for it.",
			examples: []example{
				{"berth wall back in five minutes", "shown by berth sh and berth chat"},
				{"berth wall --config try/berth.toml maintenance at noon", "on the daemon with another configuration"},
			}},
		{name: "drain", options: []option{configOption}, run: runDrain,
			help: "end the daemon when running transfers are done",
			text: "As SIGTERM: no new sessions, idle ones end, transfers may take for as long as server.drain says.",
			examples: []example{
				{"berth drain", "and systemd starts it again only for the next client"},
				{"berth drain --config try/berth.toml", "the one with another configuration"},
			}},
		{name: "reload", options: []option{configOption}, run: runReload,
			help: "have the daemon read its configuration again",
			text: "Waits for the result: if anything is wrong with the new configuration, the old one stays, the reason\nis printed and the exit code is 1. No session is dropped.",
			examples: []example{
				{"berth reload", "as systemctl reload berth does it"},
				{"berth reload --config try/berth.toml", "the daemon with another configuration"},
			}},
	}
}

func runWho(inv *invocation) error {
	var all []whoEntry
	_, err := inv.askDaemon(map[string]any{"do": "who"}, func(line []byte) error {
		if inv.on("json") {
			_, err := inv.stdout.Write(line)
			return err
		}
		var e whoEntry
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("the daemon's answer: %w", err)
		}
		all = append(all, e)
		return nil
	})
	if err != nil || inv.on("json") {
		return err
	}
	rows := [][]string{{"ID", "USER", "PROTOCOL", "ADDRESS", "SINCE", "DOING"}}
	for _, e := range all {
		since := e.Since
		if t, err := time.Parse(time.RFC3339, since); err == nil {
			since = t.Local().Format("2006-01-02 15:04:05")
		}
		rows = append(rows, []string{strconv.FormatUint(e.ID, 10), shownText(e.User), e.Protocol, e.Address, since, shownText(e.Doing)})
	}
	_, err = io.WriteString(inv.stdout, columns(rows))
	return err
}

func runKick(inv *invocation) error {
	id, err := strconv.ParseUint(inv.args[0], 10, 64)
	if err != nil || id == 0 {
		return usageErr("%s is not the number of a session; berth who lists them", configQuote(inv.args[0]))
	}
	return inv.tellDaemon(map[string]any{"do": "kick", "session": id})
}

func runWall(inv *invocation) error {
	return inv.tellDaemon(map[string]any{"do": "wall", "text": strings.Join(inv.args, " ")})
}

func runDrain(inv *invocation) error  { return inv.tellDaemon(map[string]any{"do": "drain"}) }
func runReload(inv *invocation) error { return inv.tellDaemon(map[string]any{"do": "reload"}) }

// tellDaemon prints what the daemon says.
func (inv *invocation) tellDaemon(request map[string]any) error {
	text, err := inv.askDaemon(request, nil)
	if err == nil {
		fmt.Fprintln(inv.stdout, shownText(text))
	}
	return err
}

// localSocket is where the daemon with --config listens. A configuration with
// mistakes, or one that only root may read, is no reason not to ask: reload has
// the daemon say what is wrong.
func (inv *invocation) localSocket() (string, error) {
	cfg, errs := checkConfig(inv.str("config"))
	switch {
	case cfg == nil || len(errs) > 0 && len(cfg.Listen.Local) == 0:
		cfg = defaultConfig()
	case len(cfg.Listen.Local) == 0:
		return "", fmt.Errorf("listen.local is empty in %s, and that is where the operator is heard; write local = [\"/run/berth/berth.sock\"] and restart", inv.str("config"))
	}
	return cfg.Listen.Local[0], nil
}

// askDaemon sends one request and returns what its final answer says; what data
// comes goes to line, by lines.
func (inv *invocation) askDaemon(request map[string]any, line func([]byte) error) (string, error) {
	path, err := inv.localSocket()
	if err != nil {
		return "", err
	}
	d := net.Dialer{Timeout: adminDial}
	conn, err := d.Dial("unix", path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "", &connError{text: path + ": permission denied; try with sudo, or as a member of the group " + adminGroup}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return "", &connError{text: path + ": no daemon listens there; is berth running, and does --config name its configuration?"}
	case err != nil:
		return "", &connError{path + ": " + err.Error(), err}
	}
	defer conn.Close()
	r := bufio.NewReaderSize(conn, maxLine)
	gone := func(err error) error {
		if errors.Is(err, os.ErrDeadlineExceeded) { // systemd keeps the socket open while the daemon cannot start
			return &connError{path + ": the daemon does not answer; berth check and systemctl status berth tell why", err}
		}
		return &connError{path + ": the daemon hung up: " + err.Error(), err}
	}
	reply := func() (code, text string, err error) {
		for range adminGreetings {
			conn.SetReadDeadline(time.Now().Add(adminDial))
			l, err := r.ReadSlice('\n')
			if err != nil {
				return "", "", gone(err)
			}
			if s := strings.TrimRight(string(l), "\r\n"); len(s) > 3 && s[3] == ' ' {
				return s[:3], s[4:], nil
			}
		}
		return "", "", gone(errors.New("it talks without end"))
	}
	for _, step := range []struct{ send, want string }{{"", "220"}, {"FRAM 1\r\n", "200"}} {
		io.WriteString(conn, step.send)
		code, text, err := reply()
		if err == nil && code != step.want {
			err = &connError{text: fmt.Sprintf("%s: %s %s", path, code, shownText(text))}
		}
		if err != nil {
			return "", err
		}
	}
	if _, err := conn.Write(appendFrame(nil, frameRequest, encodeJSON(request))); err != nil {
		return "", gone(err)
	}
	var frame, rest []byte
	for {
		conn.SetReadDeadline(time.Now().Add(adminTimeout))
		var t frameType
		if t, frame, err = readFrame(r, frame); err != nil {
			return "", gone(err)
		}
		switch t {
		case frameData:
			for rest = append(rest, frame...); line != nil; {
				l, more, whole := strings.Cut(string(rest), "\n")
				if !whole {
					break
				}
				if err := line([]byte(l + "\n")); err != nil {
					return "", err
				}
				rest = []byte(more)
			}
		case frameAnswer:
			var a answer
			if err := json.Unmarshal(frame, &a); err != nil {
				return "", gone(err)
			}
			switch {
			case a.Reason == "not_logged_in", a.Reason == "denied":
				return "", errors.New("only root and the group " + adminGroup + " may ask that; use sudo, or: adduser NAME " + adminGroup + ", and log in to the machine anew")
			case a.Code >= 400:
				return "", errors.New(shownLines(a.Text))
			case a.Code >= 200:
				return a.Text, nil
			}
		}
	}
}

// shownLines is shownText for a text of several lines, as the list of what is wrong
// with a configuration.
func shownLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = shownText(lines[i])
	}
	return strings.Join(lines, "\n")
}
