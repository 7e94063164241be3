package main

import (
	"errors"
	"sort"
	"strconv"
	"strings"
)

// This file reads the flags of berth user in the manner of package flag, which has no
// other use here and would be 35 KB of the binary. It is apart from the table of the
// verbs because that says what the flags do, and this how they are written.

// errUserHelp is -h.
var errUserHelp = errors.New("help is wanted")

// A userSwitch is a flag of a verb of berth user.
type userSwitch struct {
	name  string
	arg   string // "" for one that needs no value
	help  string
	given func(value string) error
}

// userSwitches are those of one verb.
type userSwitches []userSwitch

// add takes a usage that has the name of the value between backquotes, as "`FILE`: what it
// is for". Without such a name the flag needs no value, and has "true".
func (s *userSwitches) add(name, usage string, given func(string) error) {
	f := userSwitch{name: name, help: usage, given: given}
	if before, rest, ok := cutText(usage, "`"); ok {
		arg, text, _ := cutText(rest, "`")
		f.arg, f.help = arg, before+arg+text
		if text, ok := cutPrefix(text, ": "); ok {
			f.help = text
		}
	}
	*s = append(*s, f)
}

func (s *userSwitches) text(to *string, name, usage string) {
	s.add(name, usage, func(word string) error {
		*to = word
		return nil
	})
}

func (s *userSwitches) toggle(to *bool, name, usage string) {
	s.add(name, usage, func(word string) (err error) {
		if *to, err = strconv.ParseBool(word); err != nil {
			err = newError("parse error")
		}
		return err
	})
}

// sorted is the flags by name.
func (s userSwitches) sorted() userSwitches {
	sort.Slice(s, func(i, j int) bool { return s[i].name < s[j].name })
	return s
}

// parse takes the flags at the beginning of args, and returns what is behind them.
func (s userSwitches) parse(args []string) ([]string, error) {
	for len(args) > 0 {
		word := args[0]
		if len(word) < 2 || word[0] != '-' {
			return args, nil
		}
		args = args[1:]
		name := strings.TrimPrefix(word[1:], "-")
		if word == "--" {
			return args, nil
		}
		if name == "" || name[0] == '-' || name[0] == '=' {
			return nil, errorf("bad flag syntax: %s", word)
		}
		name, value, hasValue := cutText(name, "=")
		f := s.find(name)
		switch {
		case f == nil && (name == "h" || name == "help"):
			return nil, errUserHelp
		case f == nil:
			var known []string
			for _, f := range s {
				known = append(known, f.name)
			}
			return nil, errorf("no flag --%s; %s", name, nearestWord(name, known))
		case hasValue:
		case f.arg == "":
			value = "true"
		case len(args) == 0:
			return nil, errorf("--%s needs a value; write %s", name, f.form())
		default:
			value, args = args[0], args[1:]
		}
		if err := f.given(value); err != nil {
			return nil, errorf("--%s: %v", name, err)
		}
	}
	return args, nil
}

func (s userSwitches) find(name string) *userSwitch {
	for i := range s {
		if s[i].name == name {
			return &s[i]
		}
	}
	return nil
}

// form is a flag as usage texts show it.
func (f *userSwitch) form() string {
	if f.arg != "" {
		return "--" + f.name + " " + f.arg
	}
	return "--" + f.name
}
