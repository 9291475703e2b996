# Completion in bash: source configs/completion.bash
# For `python -m STAGE`, `python -m mini_llm` and `mini-llm`: commands, options, models, settings and their values.
# For `make`: targets, variables, and values of MODEL, CONFIG and RUN.

# Splits the line up to the cursor at spaces, so that key=value stays one word (readline breaks words at "=").
_mini_llm_words() {
  local line=${COMP_LINE:0:COMP_POINT}
  read -ra words <<< "$line"
  [[ $line == *[[:space:]] ]] && words+=("")
  current=${words[-1]}
}

# Fills COMPREPLY with the arguments that begin with the current word; a space follows unless more is to be typed.
_mini_llm_reply() {
  local item
  COMPREPLY=()
  for item in "$@"; do
    [[ -n $item && $item == "$current"* ]] || continue
    [[ $item == *[=./] ]] || item+=" "
    # Readline replaces only what follows the last "=".
    [[ $current == *=* && $COMP_WORDBREAKS == *=* ]] && item=${item#"${current%=*}="}
    COMPREPLY+=("$item")
  done
}

_mini_llm() {
  local words current program answers stages="tokenizer pretrain finetune generate scoring" commands=""
  _mini_llm_words
  if [[ ${words[0]##*/} == python* ]]; then
    if [[ ${words[1]} == -m && ${#words[@]} -eq 3 ]]; then
      _mini_llm_reply $stages mini_llm
      return
    fi
    [[ ${words[1]} == -m && " $stages mini_llm " == *" ${words[2]} "* ]] || {
      mapfile -t COMPREPLY < <(compgen -f -- "$current")
      return
    }
    program=("${words[0]}" -m "${words[2]}")
    words=("${words[@]:2}")
  else
    program=("${words[0]}")
  fi
  # A stage or another program of its own after mini_llm, and `generate inspect`.
  while [[ " mini_llm mini-llm generate " == *" ${words[0]##*/} "* ]]; do
    commands="$stages export"
    [[ ${words[0]} == generate ]] && commands="inspect"
    [[ ${#words[@]} -gt 2 && " $commands " == *" ${words[1]} "* ]] || break
    program+=("${words[1]}")
    words=("${words[@]:1}")
    commands=""
  done
  [[ ${#words[@]} -eq 2 ]] || commands=""
  mapfile -t answers < <(IFS=$'\n' && COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) \
    MINI_LLM_COMPLETE=complete_bash "${program[@]}" 2>/dev/null)
  _mini_llm_reply $commands "${answers[@]}"
  [[ ${#COMPREPLY[@]} -gt 0 ]] || mapfile -t COMPREPLY < <(compgen -f -- "${current##*=}")
}

_mini_llm_make() {
  local words current
  _mini_llm_words
  case $current in
    MODEL=*) _mini_llm_reply MODEL={gpt,mlm} $(basename -s .yaml -a configs/model/*.yaml | sed 's/^/MODEL=/') ;;
    CONFIG=*) _mini_llm_reply $(printf 'CONFIG=%s ' configs/*.yaml configs/{pretrain,finetune}/*.yaml) ;;
    RUN=*) _mini_llm_reply $(printf 'RUN=%s\n' runs/*/ | sed 's|=runs/|=|; s|/$||') ;;
    *=*) mapfile -t COMPREPLY < <(compgen -f -- "${current##*=}") ;;
    *) _mini_llm_reply $(awk '/^[a-z-]+:.*## / {sub(":.*", ""); print} /^[A-Z]+ +\?=/ {print $1 "="}' Makefile) ;;
  esac
}

complete -o nospace -F _mini_llm python python3 mini-llm
complete -o nospace -F _mini_llm_make make
