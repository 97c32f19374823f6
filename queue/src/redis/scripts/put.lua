-- ARGV: time, result_ttl, then per result: id, attempt, outcome, text. Answers `stored`, `duplicate` or
-- `stale` for each. Who only stores results here sweeps here, too.
sweep()
local results = {}
for nth = 3, #ARGV, 4 do
  results[#results + 1] = { ARGV[nth], tonumber(ARGV[nth + 1]), ARGV[nth + 2], ARGV[nth + 3] }
end
local told, stored = answer(results, tonumber(ARGV[2]))
tell_answers(stored)
return told
